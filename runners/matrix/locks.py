"""Locks that keep two processes from working in one folder. The system releases a lock when its process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Hold the folder's lock inside the block; wait until no other process holds it. Creates the folder.

    Yields the file descriptor of the lock: a child process that inherits it keeps the lock until it has ended, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def is_held(folder: Path) -> bool:
    """True if a process holds the folder's lock."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
