"""Headers of a corpus's audio files, each opened once: a cache remembers header, size and time of change."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from upstreams.audio_files import Header, read_header
from upstreams.errors import UserError
from upstreams.files import atomic_write, read_json
from upstreams.s3prl.made_files import cache_folder

_VERSION = 1  # of the cache: increase it when read_header finds more problems
_THREADS = 16  # the files of a network disk are slow to open, one at a time
_PART = 256  # files of one task of a thread

Entry = list[Any]  # size in bytes, time of change in ns, and the header


def read_headers(corpus: Path, names: Sequence[str]) -> list[Header | None]:
    """Return the header of each file, named by its path below the corpus or from the root; None if it is missing.

    Only files that have changed since the last call are opened. Raises UserError for a name that is not UTF-8, since
    s3prl could not write it beside its predictions.
    """
    path, below = cache_folder(corpus) / "headers.json", f"{corpus}/"  # texts: paths would take most of the time
    cached = read_json(path) or {}
    known: dict[str, Entry] = cached.get("files", {}) if cached.get("version") == _VERSION else {}

    def look_up(part: Sequence[str]) -> list[Entry | None]:
        return [_entry(name if name.startswith("/") else below + name, known.get(name)) for name in part]

    for name in (str(corpus), *names):
        if not name.isprintable():
            _check_name(corpus, name)
    parts = [names[begin : begin + _PART] for begin in range(0, len(names), _PART)]
    entries: list[Entry | None] = []
    with ThreadPoolExecutor(min(_THREADS, len(parts) or 1)) as pool:
        for found in _with_progress(pool.map(look_up, parts), len(parts), corpus.name):
            entries += found
    changed = {
        name: entry
        for name, entry in zip(names, entries, strict=True)
        if entry is not None and known.get(name) is not entry
    }
    if changed:
        _save(path, known | changed)
    return [None if entry is None else Header(*entry[2:]) for entry in entries]


def _entry(path: str, known: Entry | None) -> Entry | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    if known is not None and known[0] == status.st_size and known[1] == status.st_mtime_ns:
        return known
    return [status.st_size, status.st_mtime_ns, *read_header(path)]


def _check_name(corpus: Path, name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"the name of {corpus / name} is not UTF-8: rename it") from None


def _with_progress(parts: Any, total: int, name: str) -> Any:
    if total < 8:
        return parts
    from tqdm import tqdm

    return tqdm(parts, total=total, desc=f"headers of {name}", delay=2.0, leave=False, dynamic_ncols=True)


def _save(path: Path, files: dict[str, Entry]) -> None:
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"version": _VERSION, "files": files}), encoding="utf-8")
    except OSError:
        pass  # without a cache the next check opens the files again
