"""Terminal output of a matrix that runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runners.matrix import locks
from runners.matrix.cell import Training
from runners.matrix.command import Command
from upstreams.files import read_json

Stage = Command | Training
DRAW_SECONDS = 0.4  # between two states of the live table
LINE_SECONDS = 60.0  # between two lines in a file or a pipe
STALE_SECONDS = 600.0  # a progress file that was not written for so long is left from an earlier run


class Board:
    """A live table of the running stages, with a line above it for each stage that has ended."""

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

    def watch(self, running: Sequence[Stage]) -> None:
        """Show these stages as running: in a live table, or in a line every minute if this is no terminal."""
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
        """Print how a stage ended."""
        self.ended += 1
        self.failed += failed
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.console.file.flush()  # a file and a pipe would show it much later

    def _line(self, running: Sequence[Stage]) -> str:
        """Return the time, the counts, and the step of each running stage."""
        steps = []
        for stage in running:
            progress = _progress(stage)
            if progress is not None:
                steps.append(f"{stage.name} {progress['step']}/{progress['total']}")
            elif locks.is_held(stage.folder):
                steps.append(f"{stage.name} {_other_work(stage)}")
        counts = f"{self.ended} of {self.total} stages ended, {self.failed} failed"
        return f"{time.strftime('%H:%M:%S')} {', '.join([counts, *steps])}"

    def _render(self, running: Sequence[Stage]) -> Group:
        table = Table("stage", "step", "", "step time", "time left", box=None, pad_edge=False)
        waiting = 0
        for stage in running:
            progress = _progress(stage)
            if progress is None:
                if locks.is_held(stage.folder):
                    table.add_row(stage.name, "", Text(_other_work(stage), style="dim"), "", "")
                else:
                    waiting += 1
                continue
            step, total = progress["step"], progress["total"]
            done = max(1, step - progress["first"])
            step_seconds = (progress["now"] - progress["started"]) / done
            bar = ProgressBar(total=total, completed=step, width=24)
            left = duration(step_seconds * (total - step))
            table.add_row(stage.name, f"{step}/{total}", bar, _step_time(step_seconds), left)
        summary = f"{self.ended} of {self.total} stages ended, {self.failed} failed, {len(running) - waiting} running"
        if waiting:
            summary += f", {waiting} in the queue"
        return Group(table, Text(f"{summary}, {duration(time.monotonic() - self._started)}"))


def _progress(stage: Stage) -> dict[str, Any] | None:
    """Return what a training last wrote about its progress; None if it does not train."""
    if isinstance(stage, Command):
        return None
    progress = read_json(stage.progress_file)
    return progress if progress and time.time() - progress["now"] <= STALE_SECONDS else None


def _other_work(stage: Stage) -> str:
    """Return what a stage does that has no progress file: of a command, the last state of its progress bar."""
    if not isinstance(stage, Command):
        return "loading or testing"
    bars = re.findall(r"\d+/\d+ \[[^\]\r\n]*\]", _tail(stage.log_file))
    return bars[-1] if bars else "running"


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - 2000))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""


def duration(seconds: float | None) -> str:
    """Return `5 s`, `3 min`, `2.5 h` or `4 days`; `?` for None."""
    if seconds is None:
        return "?"
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            number = seconds / unit
            return f"{number:.0f} {name}" if number >= 10 else f"{number:.2g} {name}"
    return f"{seconds:.0f} s"


def _step_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
