"""Stages in processes of this machine: as many as fit into its memory, its cores and its GPUs."""

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
from runners.matrix.engines.work import Resources, Work
from runners.matrix.graph import StageT

USABLE = 0.9  # fraction of the memory that is free at the start: the needs are only estimates


def run(work: Work[StageT], settings: Mapping[str, Any]) -> Iterator[tuple[StageT, str | None]]:
    """Run each stage in its own process with one torch thread, with at most `settings["jobs"]` processes at a time.

    A stage starts when its expected memory fits beside that of the running ones, and when as many GPUs and processes as
    it needs are free; one with more processes than there may be starts when nothing else runs. While a stage of several
    processes waits for room, none that comes later starts. A stage that does not fit into the free memory even alone,
    or that needs more GPUs than there are, fails with that reason. Processes are forked, so that they start with
    everything that this process has imported; with CUDA, which does not survive a fork, they are spawned. A process
    that dies for any reason fails only its own stage. When this process dies, they end too.
    """
    memory, jobs, graph = USABLE * free_memory(), settings["jobs"], work.graph
    gpus: list[str] | None = None  # not known yet: asking imports torch
    running: list[_Worker[StageT]] = []
    try:
        while graph or running:
            for stage in graph.ready():
                needed = work.resources(stage)
                if needed.gpus and gpus is None:
                    gpus = visible_gpus()
                if reason := _too_large(needed, memory, len(gpus or ())):
                    graph.start(stage)
                    yield stage, reason
                    continue
                free = [gpu for gpu in gpus or () if not any(gpu in worker.gpus for worker in running)]
                if _fits(needed, [work.resources(worker.stage) for worker in running], memory, jobs, len(free)):
                    if work.busy(stage):
                        continue
                    graph.start(stage)
                    running.append(_Worker(stage, work.run, work.log_file(stage), free[: needed.gpus]))
                elif not needed.alone and max(needed.processes, needed.gpus) > 1:
                    break  # smaller stages that overtake it would leave it no room for hours
            work.watch([worker.stage for worker in running])
            if not running:
                time.sleep(0.5)  # another runner works on everything that is left
                continue
            ended = wait([worker.process.sentinel for worker in running], timeout=0.5)
            for worker in [worker for worker in running if worker.process.sentinel in ended]:
                running.remove(worker)
                yield worker.stage, worker.reason()
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


def _fits(needed: Resources, running: list[Resources], memory: float, jobs: int, free_gpus: int) -> bool:
    """True if a stage can start beside the running ones."""
    if not running:
        return needed.gpus <= free_gpus
    if needed.alone or any(other.alone for other in running):
        return False
    return (
        sum(other.processes for other in running) + needed.processes <= jobs
        and sum(other.memory for other in running) + needed.memory <= memory
        and needed.gpus <= free_gpus
    )


def _too_large(needed: Resources, memory: float, gpus: int) -> str:
    """Return why a stage can never start on this machine; empty if it can."""
    if needed.gpus > gpus:
        return f"not started: it needs {needed.gpus} GPUs, and this machine has {gpus}"
    if needed.memory > memory:
        gigabytes = needed.memory / 2**30
        return f"not started: it needs about {gigabytes:.1f} GB of memory, and {memory / 2**30:.1f} GB are free"
    return ""


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


class _Worker(Generic[StageT]):
    """A process that runs one stage."""

    def __init__(self, stage: StageT, run: Callable[[StageT], object], log: Path, gpus: list[str]) -> None:
        self.stage = stage
        self.gpus = gpus
        fork = not gpus and "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        # Not daemonic: a daemonic process may not have children, as the workers of data loaders are.
        self.process = context.Process(target=_work, args=(stage, run, log, gpus, sender), daemon=False)
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


def _work(stage: StageT, run: Callable[[StageT], object], log: Path, gpus: list[str], sender: Connection) -> None:
    """Run the stage in this process; send the reason to the parent if it fails."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # before CUDA is initialised
    reason = run_logged(run, stage, log)
    if reason is not None:
        sender.send(reason)
        sys.exit(1)


def _end_with_the_parent() -> None:
    """End this process with its parent: otherwise it could write into a folder that a later runner uses."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
