"""Files that are made for a corpus: where they stand, what they were made from, and whose they are.

Beside each of them a hidden file `.<name>.made.json` records a digest of what it was made from, and its own. A file
that differs from its record, or has none, is its user's: it is never overwritten.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from upstreams.files import atomic_write, read_json, sha256, write_json


class State(Enum):
    """State of a file that is made for a corpus."""

    MISSING = "missing"
    FRESH = "fresh"  # made from what the corpus holds now
    STALE = "stale"  # made from something else
    OWN = "own"  # written, or changed, by the user


def place(folder: str | Path, name: str) -> Path:
    """Return the path of a made file: FOLDER/name, or in the cache if the folder of the corpus is read-only.

    The cache is $SUPERBIT_CACHE, or superbit in $XDG_CACHE_HOME or ~/.cache. A file that exists stays where it is.
    """
    folder = Path(folder)
    beside, cached = folder / name, cache_folder(folder) / name
    if beside.exists() or not folder.exists():
        return beside
    return cached if cached.exists() or not _is_writable(beside) else beside


def cache_folder(folder: str | Path) -> Path:
    """Return the cache's folder for a corpus; it depends on the real path of the corpus."""
    real = os.path.realpath(folder)
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "superbit"
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return Path(os.environ.get("SUPERBIT_CACHE") or default).absolute() / "corpora" / f"{Path(real).name}-{digest}"


def _is_writable(path: Path) -> bool:
    parent = next(folder for folder in path.parents if folder.exists())
    return os.access(parent, os.W_OK | os.X_OK)


def is_own(path: Path) -> bool:
    """True if the file exists, and its user wrote or changed it."""
    return path.exists() and (read_json(_record(path)) or {}).get("sha256") != sha256(path)


def state(path: Path, source: str) -> State:
    """Return the state of a made file, where `source` is the digest of what it would be made from now."""
    if not path.exists():
        return State.MISSING
    if is_own(path):
        return State.OWN
    return State.FRESH if (read_json(_record(path)) or {}).get("made_from") == source else State.STALE


@contextmanager
def making(path: Path, source: str) -> Iterator[Path]:
    """Yield a temporary path, like `atomic_write`, and record what the file is made from."""
    with atomic_write(path) as temporary:
        yield temporary
        write_json(_record(path), {"made_from": source, "sha256": sha256(temporary)})


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.made.json")


def digest(items: Iterable[object]) -> str:
    """Return the SHA-256 of a sequence of texts and numbers."""
    return hashlib.sha256("\0".join(map(str, items)).encode("utf-8", "surrogateescape")).hexdigest()
