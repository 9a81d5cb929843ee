"""Cells in processes of this machine: as many as its memory holds, one for each GPU."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic

from runners.matrix.engines import CellT, Work
from runners.matrix.engines.logged import run_logged

SPARE = 0.9  # of the memory that is free at the start; the estimates are estimates


def run(work: Work[CellT], settings: Mapping[str, Any]) -> Iterator[tuple[CellT, str | None]]:
    """Run every cell in a process of its own, `settings["jobs"]` at a time at most, one torch thread each.

    A cell is started when its expected memory fits beside that of the cells that run, and on GPUs when one is free.
    One that would not fit into the free memory even alone fails with that reason. The processes are forked, so that
    they start with what this one has imported; with CUDA, which does not survive a fork, they are spawned. A process
    that dies, however it dies, fails its own cell only; when this process dies, they end too.
    """
    fork = not work.on_gpu and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    memory = SPARE * free_memory()
    gpus: list[str | None] = list(visible_gpus()) if work.on_gpu else [None] * settings["jobs"]
    places = gpus[: settings["jobs"]]
    waiting = list(work.cells)
    running: list[_Worker[CellT]] = []
    try:
        while waiting or running:
            for cell in [cell for cell in waiting if work.memory(cell) > memory]:
                waiting.remove(cell)
                yield cell, _too_large(work.memory(cell), memory)
            while waiting and len(running) < len(places):
                left = memory - sum(work.memory(worker.cell) for worker in running)
                fitting = (cell for cell in waiting if work.memory(cell) <= left and not work.busy(cell))
                if (chosen := next(fitting, None)) is None:
                    break
                waiting.remove(chosen)
                place = next(place for place in places if place is None or place not in [w.gpu for w in running])
                running.append(_Worker(context, chosen, work.run, work.log_file(chosen), place))
            work.watch([worker.cell for worker in running])
            if not running:
                time.sleep(0.5)  # another runner has all that is left
                continue
            ended = wait([worker.process.sentinel for worker in running], timeout=0.5)
            for worker in [worker for worker in running if worker.process.sentinel in ended]:
                running.remove(worker)
                yield worker.cell, worker.reason()
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _too_large(needed: float, free: float) -> str:
    return f"it needs about {needed / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free: it was not started"


def free_memory() -> float:
    """Bytes that new processes may take; without Linux's figure, what the machine has."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = float(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(available, *_control_group_limits())


def _control_group_limits() -> list[float]:
    """What a container leaves, in bytes: its limit less what it uses, its page cache aside."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = float(re.findall(r"^anon (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)[0])
    except (OSError, ValueError, IndexError):
        return [float("inf")]
    return [limit - used]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one for each GPU that this process sees."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name for name in named.split(",") if name] or [str(index) for index in range(torch.cuda.device_count())]


class _Worker(Generic[CellT]):
    """One process that runs one cell."""

    def __init__(self, context: Any, cell: CellT, run: Callable[[CellT], object], log: Path, gpu: str | None) -> None:
        self.cell = cell
        self.gpu = gpu
        self.receiver, sender = context.Pipe(duplex=False)
        # Not daemonic: a daemonic process may not have children, and data loaders' workers are such.
        self.process = context.Process(target=_work, args=(cell, run, log, gpu, sender), daemon=False)
        self.process.start()
        sender.close()

    def reason(self) -> str | None:
        """Why the process, which has ended, failed; None when it did not."""
        self.process.join()
        try:
            if self.receiver.poll():
                return str(self.receiver.recv())
        except EOFError:
            pass  # it ended without a word
        code = self.process.exitcode
        if code == 0:
            return None
        if code < 0:
            return f"the process was ended by signal {-code}"
        return f"the process ended with code {code}"


def _work(cell: CellT, run: Callable[[CellT], object], log: Path, gpu: str | None, sender: Connection) -> None:
    """The process: its failure goes to the parent as one line."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything
    reason = run_logged(run, cell, log)
    if reason is not None:
        sender.send(reason)
        sys.exit(1)


def _end_with_the_parent() -> None:
    """A worker that outlives its runner would go on writing into a folder that a later runner takes over."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
