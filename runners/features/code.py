"""Digests of code: features and heads that other code has computed are recognised. Importable without torch."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import upstreams
from upstreams.versions import versions

SUFFIXES = (".py", ".cpp", ".h")


@functools.cache
def code_version() -> str:
    """Return a digest of all code that turns waveforms into features: this project's upstreams, torch and s3prl."""
    found = versions()
    return hashlib.sha256(
        f"{found['torch']} {found['s3prl']} {code_digest(Path(upstreams.__file__).parent)}".encode()
    ).hexdigest()


@functools.cache
def code_digest(*places: Path) -> str:
    """Return a digest of the source files at these places, each a file or a folder, wherever they are installed."""
    digest = hashlib.sha256()
    for place in places:
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES)
        for path in files:
            digest.update(path.relative_to(place.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
