"""Running many cells: in processes of this machine.

An engine takes cells, a function that runs one and says where each logs, and yields every cell as it ends
with the reason why it failed, or None. What a cell produces, it leaves on disk.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from upstreams.errors import UserError

CellT = TypeVar("CellT")


def local(
    cells: Sequence[CellT],
    run: Callable[[CellT], object],
    log_file: Callable[[CellT], Path],
    jobs: int,
    device: str,
    watch: Callable[[list[CellT]], None],
) -> Iterator[tuple[CellT, str | None]]:
    """Run every cell in a process of its own, `jobs` at a time, one torch thread each.

    The processes are forked, so that they start with what this one has imported; with CUDA, which does not
    survive a fork, they are spawned. `watch` is called with the cells that run whenever one starts or ends,
    and twice a second. A process that dies, however it dies, fails its own cell only; when this process dies,
    they end too.
    """
    fork = device == "cpu" and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    waiting = list(reversed(cells))
    running: list[_Worker[CellT]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                running.append(_Worker(context, cell, run, log_file(cell)))
            watch([worker.cell for worker in running])
            ended = wait([worker.process.sentinel for worker in running], timeout=0.5)
            for worker in [worker for worker in running if worker.process.sentinel in ended]:
                running.remove(worker)
                yield worker.cell, worker.reason()
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


class _Worker(Generic[CellT]):
    """One process that runs one cell."""

    def __init__(self, context: Any, cell: CellT, run: Callable[[CellT], object], log: Path) -> None:
        self.cell = cell
        log.parent.mkdir(parents=True, exist_ok=True)
        self.receiver, sender = context.Pipe(duplex=False)
        # Not daemonic: a daemonic process may not have children, and data loaders' workers are such.
        self.process = context.Process(target=_work, args=(cell, run, log, sender), daemon=False)
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


def _work(cell: CellT, run: Callable[[CellT], object], log: Path, sender: Connection) -> None:
    """The process: its output goes to the log, its failure also to the parent as one line."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    stream = log.open("a", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    import torch

    torch.set_num_threads(1)
    try:
        run(cell)
    # SystemExit too: argparse raises it, and to the parent it would look like a cell that was done.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        stream.flush()
        text = textwrap.shorten(str(error), 300, placeholder=" ...") or "no message"
        sender.send(text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")
        sys.exit(1)


def _end_with_the_parent() -> None:
    """A worker that outlives its runner would go on writing into a folder that a later runner takes over."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
