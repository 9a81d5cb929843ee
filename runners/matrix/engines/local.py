"""Trainings in processes of this machine: as many as fit into its memory, one for each GPU."""

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

from runners.matrix.engines.logged import run_logged
from runners.matrix.engines.work import TrainingT, Work

USABLE = 0.9  # fraction of the memory that is free at the start: the needs are only estimates


def run(work: Work[TrainingT], settings: Mapping[str, Any]) -> Iterator[tuple[TrainingT, str | None]]:
    """Run each training in its own process with one torch thread, at most `settings["jobs"]` at a time.

    A training starts when its expected memory fits beside that of the running ones, and when a GPU is free if it needs
    one. A training that does not fit into the free memory even alone fails with that reason. The processes are forked,
    so that they start with everything that this process has imported; with CUDA, which does not survive a fork, they
    are spawned. A process that dies for any reason fails only its own training. When this process dies, they end too.
    """
    fork = not work.on_gpu and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    memory = USABLE * free_memory()
    gpus: list[str | None] = list(visible_gpus()) if work.on_gpu else [None] * settings["jobs"]
    places = gpus[: settings["jobs"]]
    waiting = list(work.trainings)
    running: list[_Worker[TrainingT]] = []
    try:
        while waiting or running:
            for training in [training for training in waiting if work.memory(training) > memory]:
                waiting.remove(training)
                yield training, _too_large(work.memory(training), memory)
            while waiting and len(running) < len(places):
                left = memory - sum(work.memory(worker.training) for worker in running)
                fitting = (each for each in waiting if work.memory(each) <= left and not work.busy(each))
                if (chosen := next(fitting, None)) is None:
                    break
                waiting.remove(chosen)
                place = next(place for place in places if place is None or place not in [w.gpu for w in running])
                running.append(_Worker(context, chosen, work.run, work.log_file(chosen), place))
            work.watch([worker.training for worker in running])
            if not running:
                time.sleep(0.5)  # another runner works on everything that is left
                continue
            ended = wait([worker.process.sentinel for worker in running], timeout=0.5)
            for worker in [worker for worker in running if worker.process.sentinel in ended]:
                running.remove(worker)
                yield worker.training, worker.reason()
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _too_large(needed: float, free: float) -> str:
    return f"not started: it needs about {needed / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free"


def free_memory() -> float:
    """Return the bytes that new processes may take; on other systems than Linux, all memory of the machine."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = float(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(available, *_control_group_limits())


def _control_group_limits() -> list[float]:
    """Return the free bytes of a container: its limit minus what it uses without its page cache."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = float(re.findall(r"^anon (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)[0])
    except (OSError, ValueError, IndexError):
        return [float("inf")]
    return [limit - used]


def visible_gpus() -> list[str]:
    """Return a value for CUDA_VISIBLE_DEVICES for each GPU that this process sees."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name for name in named.split(",") if name] or [str(index) for index in range(torch.cuda.device_count())]


class _Worker(Generic[TrainingT]):
    """A process that runs one training."""

    def __init__(
        self, context: Any, training: TrainingT, run: Callable[[TrainingT], object], log: Path, gpu: str | None
    ) -> None:
        self.training = training
        self.gpu = gpu
        self.receiver, sender = context.Pipe(duplex=False)
        # Not daemonic: a daemonic process may not have children, as the workers of data loaders are.
        self.process = context.Process(target=_work, args=(training, run, log, gpu, sender), daemon=False)
        self.process.start()
        sender.close()

    def reason(self) -> str | None:
        """Return why the process failed, after it has ended; None if it succeeded."""
        self.process.join()
        try:
            if self.receiver.poll():
                return str(self.receiver.recv())
        except EOFError:
            pass  # it ended without sending a reason
        code = self.process.exitcode
        if code == 0:
            return None
        if code < 0:
            return f"signal {-code} ended the process"
        return f"the process ended with code {code}"


def _work(
    training: TrainingT, run: Callable[[TrainingT], object], log: Path, gpu: str | None, sender: Connection
) -> None:
    """Run the training in this process; send the reason to the parent if it fails."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is initialised
    reason = run_logged(run, training, log)
    if reason is not None:
        sender.send(reason)
        sys.exit(1)


def _end_with_the_parent() -> None:
    """End this process with its parent: otherwise it could write into a folder that a later runner uses."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
