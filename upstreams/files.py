"""Files: writes that leave nothing half-written, text that users wrote, strict JSON, and digests."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upstreams.errors import UserError

UNFINISHED = ".tmp"  # suffix of files that are being written


def temporary_beside(path: Path) -> Path:
    """Return a path beside `path` that no other thread, process or machine uses; its name ends in UNFINISHED."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(8).hex()}{UNFINISHED}")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it to disk and rename it to `path`.

    A reader sees the old file or the whole new one, never a part; on an exception nothing is left behind. The file's
    mode follows the umask, whatever writes it: safetensors alone would let only the owner read a checkpoint.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def parse_yaml(text: str, where: str) -> Any:
    """Return the content of YAML text. Raises UserError if it is not valid. where: its name in the message."""
    import yaml  # takes a megabyte, which the runtime without torch does not need

    try:
        return yaml.safe_load(text)
    # Beside its own errors, PyYAML passes on Python's: of dates, numbers of 5000 digits, and deep nesting.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {reason}") from error


def json_ready(content: Any) -> Any:
    """Return the content in JSON's own types, as a reader of the file will see it.

    JSON has no NaN and no infinity, and strict parsers refuse a file with them: they become the texts `NaN`, `Infinity`
    and `-Infinity`. Tuples become lists, and keys texts.
    """
    return json.loads(json.dumps(_finite(content), allow_nan=False))


def json_text(content: Any, indent: int | None = 1) -> str:
    """Return the content as JSON that every parser accepts; see `json_ready`."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write the content as strict JSON (`json_text`) with `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(content) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the file's JSON object, or None if the file is missing or holds no JSON object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_record(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Return the JSON object that one of our commands wrote; empty if the file is missing.

    Raises UserError if the file holds something else. remedy: what to do then, for the message.
    """
    content = read_json(path)
    if content is None and Path(path).exists():
        raise UserError(f"{os.fspath(path)} is damaged: it holds no JSON object; {remedy}")
    return content or {}


def text_lines(path: str | os.PathLike[str], *, skip_mark: bool = False) -> Iterator[str]:
    """Yield the lines of a text file that a user wrote, without their ends; only a line feed ends a line.

    str.splitlines would also split at characters that the name of a file may hold. A carriage return before the line
    feed belongs to the end. skip_mark: leave out a byte-order mark at the beginning. Raises UserError if the file
    cannot be read or is empty, and names the first line that is not UTF-8, that holds a NUL byte, or that begins with
    a byte-order mark.
    """
    empty = True
    for line in _decoded_lines(path, skip_mark):
        empty = False
        yield line.removesuffix("\r")
    if empty:
        raise UserError(f"{os.fspath(path)} is empty: line 1 is missing")


def universal_lines(path: str | os.PathLike[str], *, skip_mark: bool = False) -> list[str]:
    """Return the lines of a text file as s3prl reads them: line feeds, carriage returns or both end a line.

    skip_mark and errors: as `text_lines`, but an empty file has no lines. s3prl itself takes a byte-order mark for a
    part of the first line.
    """
    lines = (line.removesuffix("\r") for line in _decoded_lines(path, skip_mark))
    return [part for line in lines for part in line.split("\r")]


def read_text(path: str | os.PathLike[str], *, skip_mark: bool = False) -> str:
    """Return the content of a text file that a user wrote. skip_mark and errors: as `text_lines`."""
    if text := "".join(f"{line}\n" for line in _decoded_lines(path, skip_mark)):
        return text
    raise UserError(f"{os.fspath(path)} is empty: line 1 is missing")


def _decoded_lines(path: str | os.PathLike[str], skip_mark: bool) -> Iterator[str]:
    """Yield what stands between the line feeds of a text file."""
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                bare = line.removeprefix(codecs.BOM_UTF8) if skip_mark and number == 1 else line
                yield _decoded(bare, f"line {number} of {os.fspath(path)}").removesuffix("\n")
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error


def _decoded(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise UserError(f"{where} holds a NUL byte: a text file in UTF-8 is expected, not a binary one")
    if line.startswith(codecs.BOM_UTF8):
        raise UserError(f"{where} begins with a byte-order mark: save the file as UTF-8 without one")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start + 1}: save the file as UTF-8") from None


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
