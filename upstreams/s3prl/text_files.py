"""Lists and transcripts: text files that people write and other systems pack."""

from __future__ import annotations

import os
from pathlib import Path

from upstreams.errors import UserError

_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # a byte-order mark


def read_text(path: str | os.PathLike[str], *, mark: bool = True) -> str:
    """Return the content of a UTF-8 file.

    mark: skip a byte-order mark; if False, raise UserError for one: s3prl, which reads the file itself, would take it
    for a part of the first line. Raises FileNotFoundError, and UserError if the file cannot be read; it names the first
    line that is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{os.fspath(path)}, line {line}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    if text.startswith(_MARK):
        if not mark:
            raise UserError(f"{os.fspath(path)} begins with a byte-order mark, which s3prl cannot read: remove it")
        text = text[1:]
    return text


def read_lines(path: str | os.PathLike[str], *, mark: bool = True) -> list[str]:
    """Return the lines of a UTF-8 file without their ends. Only line feeds, carriage returns or both end a line.

    mark: as of `read_text`, which also names the errors.
    """
    lines = read_text(path, mark=mark).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
