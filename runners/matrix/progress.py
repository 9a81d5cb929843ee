"""What a person sees of a matrix: what is planned, what runs, how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runners.matrix.cell import Cell, finished, is_locked, trained
from upstreams.files import read_json

if TYPE_CHECKING:
    from runners.matrix.estimate import Estimate

STALE_SECONDS = 600.0  # without a word in that time, a training's progress is an old one's


class Board:
    """A live table of the cells that run: step, share, time left; one line above it for each that has ended."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.ended = 0
        self.failed = 0
        self._started = time.monotonic()
        self._drawn = 0.0
        # Drawn by hand: the thread that would draw it could hold a lock at the moment of a fork.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def watch(self, running: Sequence[Cell]) -> None:
        """Show these cells as running."""
        if self.console.is_terminal and time.monotonic() - self._drawn > 0.4:
            self._drawn = time.monotonic()
            self._live.update(self._render(running), refresh=True)

    def end(self, lines: Sequence[str], failed: bool) -> None:
        """Say how a training ended."""
        self.ended += 1
        self.failed += failed
        for line in lines:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self, running: Sequence[Cell]) -> Group:
        table = Table("cell", "step", "", "step time", "left", box=None, pad_edge=False)
        waiting = 0
        for cell in running:
            progress = read_json(cell.progress_file)
            if progress is None or time.time() - progress["now"] > STALE_SECONDS:
                if is_locked(cell):
                    table.add_row(cell.name, "", Text("loading or testing", style="dim"), "", "")
                else:
                    waiting += 1
                continue
            step, total = progress["step"], progress["total"]
            done = max(1, step - progress["first"])
            each = (progress["now"] - progress["started"]) / done
            bar = ProgressBar(total=total, completed=step, width=24)
            table.add_row(cell.name, f"{step}/{total}", bar, _each(each), duration(each * (total - step)))
        summary = f"{self.ended} of {self.total} ended, {self.failed} failed, {len(running) - waiting} running"
        if waiting:
            summary += f", {waiting} in the queue"
        return Group(table, Text(f"{summary}, {duration(time.monotonic() - self._started)}"))


def plan_table(
    cells: Sequence[Cell], estimates: Mapping[str, Estimate], new_bytes: Mapping[str, int], states: Mapping[str, str]
) -> Table:
    """Every training, by its name: where it stands, what it is expected to take."""
    table = Table(title="what would run", box=None, pad_edge=False)
    table.add_column("cell", overflow="fold")
    table.add_column("state")
    for name in ("steps", "time", "memory", "new disk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from")
    for cell in cells:
        estimate = estimates[cell.name]
        is_done = states[cell.name] == "done"
        table.add_row(
            cell.name,
            states[cell.name],
            str(cell.config["runner"].get("total_steps", "-")),
            "-" if is_done else duration(estimate.seconds),
            "-" if is_done else size(estimate.memory_bytes),
            "-" if is_done else size(new_bytes[cell.name]),
            "-" if is_done else estimate.source,
        )
    return table


def state(cell: Cell) -> str:
    """Where a training stands, in words."""
    if finished(cell) is not None:
        return "done"
    if trained(cell) is not None:
        return "trained"
    if is_locked(cell):
        return "running"
    steps = [int(path.stem.removeprefix("states-")) for path in cell.expdir.glob("states-*.ckpt")]
    if steps and read_json(cell.training_folder / "cell.json") == cell.training_identity:
        return f"goes on at {max(steps)}"
    return "new"


def duration(seconds: float | None) -> str:
    """`5 s`, `3 min`, `2.5 h`, `4 days`; `?` of None."""
    if seconds is None:
        return "?"
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """`3.2 GB`, `120 MB`."""
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


def _each(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
