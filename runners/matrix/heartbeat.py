"""Step and memory of a training, written to a file for other processes and machines."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

from upstreams.files import json_text, temporary_beside


class Heartbeat:
    """Called with the number of each finished step, writes it to a file at most every 1.5 seconds.

    first: number of steps that were done before this process started; total: steps of the whole training.
    """

    def __init__(self, file: Path, first: int, total: int) -> None:
        self.file = file
        self.first = first
        self.total = total
        self.peak_memory = 0  # bytes
        self._started: float | None = None
        self._written = 0.0

    def __call__(self, step: int) -> None:
        now = time.time()
        if self._started is None:
            self._started = now
            self.first = step - 1
        if now - self._written < 1.5:
            return
        self._written = now
        self.peak_memory = max(self.peak_memory, own_memory())
        content = {"step": step, "total": self.total, "first": self.first, "started": self._started, "now": now}
        # Renamed into place, but not synced to disk: syncing could take longer than the steps.
        temporary = temporary_beside(self.file)
        temporary.write_text(json_text(content), encoding="utf-8")
        temporary.replace(self.file)


def own_memory() -> int:
    """Return the bytes of this process that no file backs: the system can drop mapped features from its page cache."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 1024 * sum(int(n) for n in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE))
