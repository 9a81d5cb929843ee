"""Terminal output of a matrix: plan and progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runners.matrix import locks
from runners.matrix.cell import Cell, Training, finished, trained
from runners.matrix.estimate import Estimate, audio_group
from runners.matrix.stale import kept_aside, stale_results
from runners.matrix.training import resumable_step
from upstreams.files import read_json

DRAW_SECONDS = 0.4  # between two states of the live table
LINE_SECONDS = 60.0  # between two lines in a file or a pipe
STALE_SECONDS = 600.0  # a progress file that was not written for so long is left from an earlier run


class Board:
    """A live table of the running trainings, with a line above it for each training that has ended."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.ended = 0
        self.failed = 0
        self._started = time.monotonic()
        self._drawn = time.monotonic() if not console.is_terminal else 0.0
        # Refreshed by hand: a thread that refreshes it could hold a lock at the moment of a fork.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def watch(self, running: Sequence[Training]) -> None:
        """Show these trainings as running: in a live table, or in a line every minute if this is no terminal."""
        if os.environ.get("TQDM_DISABLE"):
            return
        seconds = DRAW_SECONDS if self.console.is_terminal else LINE_SECONDS
        if time.monotonic() - self._drawn < seconds:
            return
        self._drawn = time.monotonic()
        if self.console.is_terminal:
            self._live.update(self._render(running), refresh=True)
        else:
            self._print(self._line(running))

    def end(self, lines: Sequence[str], failed: bool) -> None:
        """Print how a training ended."""
        self.ended += 1
        self.failed += failed
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()  # a file and a pipe would show it much later

    def _line(self, running: Sequence[Training]) -> str:
        """Return the time, the counts, and the step of each running training."""
        steps = []
        for training in running:
            progress = _progress(training)
            if progress is not None:
                steps.append(f"{training.name} {progress['step']}/{progress['total']}")
            elif locks.is_held(training.folder):
                steps.append(f"{training.name} loading or testing")
        counts = f"{self.ended} of {self.total} trainings ended, {self.failed} failed"
        return f"{time.strftime('%H:%M:%S')} {', '.join([counts, *steps])}"

    def _render(self, running: Sequence[Training]) -> Group:
        table = Table("training", "step", "", "step time", "time left", box=None, pad_edge=False)
        waiting = 0
        for training in running:
            progress = _progress(training)
            if progress is None:
                if locks.is_held(training.folder):
                    table.add_row(training.name, "", Text("loading or testing", style="dim"), "", "")
                else:
                    waiting += 1
                continue
            step, total = progress["step"], progress["total"]
            done = max(1, step - progress["first"])
            step_seconds = (progress["now"] - progress["started"]) / done
            bar = ProgressBar(total=total, completed=step, width=24)
            left = duration(step_seconds * (total - step))
            table.add_row(training.name, f"{step}/{total}", bar, _step_time(step_seconds), left)
        summary = (
            f"{self.ended} of {self.total} trainings ended, {self.failed} failed, {len(running) - waiting} running"
        )
        if waiting:
            summary += f", {waiting} in the queue"
        return Group(table, Text(f"{summary}, {duration(time.monotonic() - self._started)}"))


def _progress(training: Training) -> dict[str, Any] | None:
    """Return what a training last wrote about its progress; None if it does not train."""
    progress = read_json(training.progress_file)
    return progress if progress and time.time() - progress["now"] <= STALE_SECONDS else None


def show_plan(cells: Sequence[Cell], estimator: Callable[[Training], Estimate], *, jobs: int, console: Console) -> None:
    """Print every training with its state and estimates, the totals, and why results are stale."""
    table = Table(title="planned trainings", box=None, pad_edge=False)
    table.add_column("training", overflow="fold")
    table.add_column("state")
    for name in ("steps", "time", "memory", "new disk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source")
    trainings = [training for cell in cells for training in cell.trainings]
    stored: dict[object, int] = {}  # bytes of features by audio group, which its trainings share
    left, seconds, unknown, features, from_macs = 0, 0.0, 0, 0, False
    states = [state(training) for training in trainings]
    if all(now == "done" for now in states):
        estimator = _no_estimate  # estimating imports torch, which a finished matrix does not need
    for training, now in zip(trainings, states, strict=True):
        estimate = estimator(training)
        steps = str(training.config["runner"].get("total_steps", "-"))
        group, needed = audio_group(training.cell), estimate.feature_bytes or 0
        added = max(0, needed - stored.get(group, 0))
        stored[group] = max(needed, stored.get(group, 0))
        if now == "done":
            table.add_row(training.name, now, steps, "-", "-", "-", "-")
            continue
        left += 1
        features += added
        unknown += estimate.seconds is None
        seconds += estimate.seconds or 0.0
        from_macs |= estimate.source == "MACs"
        time_, memory = duration(estimate.seconds), size(estimate.memory_bytes)
        disk = size(added + estimate.checkpoint_bytes)
        table.add_row(training.name, now, steps, time_, memory, disk, estimate.source)
    console.print(table)
    total = f"{left} of {len(trainings)} trainings to run, {len(cells)} cells: about "
    total += f"{duration(seconds / max(1, min(jobs, left)))} with {jobs} jobs"
    if unknown:
        total += f", plus {unknown} of unknown time"
    console.print(total, soft_wrap=True)
    store = cells[0].store
    if store is not None and left:
        limit = f"the store {store.folder} keeps at most {size(store.max_bytes)}"
        console.print(f"features: about {size(features)}; {limit}", soft_wrap=True)
    if from_macs:
        console.print("Times from MACs may be wrong by a factor of 3; a measured training replaces them.")
    again, staying = stale_results(cells)
    for stale in again:
        console.print(f"{stale}", markup=False, highlight=False, soft_wrap=True)
    for stale in staying:
        console.print(
            f"{stale}; it stays, --rerun-stale computes it again", markup=False, highlight=False, soft_wrap=True
        )


def _no_estimate(training: Training) -> Estimate:
    return Estimate(seconds=None, feature_bytes=None, checkpoint_bytes=0, memory_bytes=0, source="")


def state(training: Training) -> str:
    """Return the state of a training in words."""
    if finished(training.fold) is not None or kept_aside(training.fold) is not None:
        return "done"
    if trained(training) is not None:
        return "trained"
    if locks.is_held(training.folder):
        return "running"
    step = resumable_step(training)
    return "new" if step is None else f"resumes at {step}"


def duration(seconds: float | None) -> str:
    """Return `5 s`, `3 min`, `2.5 h` or `4 days`; `?` for None."""
    if seconds is None:
        return "?"
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """Return `3.2 GB` or `120 MB` for a number of bytes."""
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


def _step_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
