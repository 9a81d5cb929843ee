"""Audio files on disk: those below a folder, and what their headers say. Imports soundfile only to read a header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from upstreams.errors import UserError

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_PLAIN = (1, 3)  # WAV's format tags of integers and of floating-point numbers
_EXTENSIBLE = 0xFFFE  # the format tag is the beginning of the sub-format


class Header(NamedTuple):
    """What an audio file says about itself, and the reason why it cannot be used (empty if there is none)."""

    rate: int  # Hz
    channels: int
    frames: int  # samples of one channel
    problem: str = ""


def is_hidden(name: str) -> bool:
    """True for the name of a hidden file or folder, and for what macOS leaves in archives (._x, __MACOSX)."""
    return name.startswith(".") or name == "__MACOSX"


def find_audio(root: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Return the paths below `root` of all files with one of these suffixes in any case, sorted part by part.

    Links are followed, but no folder is entered twice. Hidden files are left out. The paths have `/` between
    their parts. Raises UserError for a folder that cannot be read.
    """
    found: list[str] = []
    entered: set[tuple[int, int]] = set()

    def visit(folder: str, prefix: str) -> None:
        try:
            status = Path(folder).stat()
            with os.scandir(folder) as listing:
                entries = sorted(
                    (entry for entry in listing if not is_hidden(entry.name)), key=lambda entry: entry.name
                )
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be read: {error.strerror}") from None
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.is_dir():
                visit(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(suffixes):
                found.append(prefix + entry.name)

    visit(os.fspath(root), "")
    return found


def read_header(path: str | Path) -> Header:
    """Return the header of an audio file, after a check that the file holds as many samples as the header states.

    Never raises an error for a file that cannot be read: it is the header's `problem`.
    """
    try:
        with Path(path).open("rb") as file:
            header = _read_wav(file)
        return header or _read_by_soundfile(path)
    except OSError as error:
        return Header(0, 0, 0, error.strerror or str(error))


def _read_wav(file: BinaryIO) -> Header | None:
    """Return the header of a WAV file of integers or floating-point numbers; None for any other file.

    libsndfile takes the length of a truncated WAV file from the size of the file, and says nothing.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(12)
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        return None
    layout, position, length = b"", 12, 0
    while True:
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        length = int.from_bytes(chunk[4:], "little")
        position += 8
        if chunk[:4] == b"data":
            break
        if chunk[:4] == b"fmt ":
            layout = file.read(min(length, 40))
        position += length + length % 2
    if len(layout) < 16:
        return None
    tag, channels, rate, bytes_per_second, block = (
        int.from_bytes(layout[begin:end], "little") for begin, end in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14))
    )
    if tag == _EXTENSIBLE:
        tag = int.from_bytes(layout[24:26], "little")
    if tag not in _PLAIN or 0 in (channels, rate, block):
        return None
    stated, held = length // block, (size - position) // block
    problem = ""
    if stated > held:
        problem = f"its header states {stated} samples, but the file holds {held}"
    elif _has_more_samples(file, position + length + length % 2, size, bytes_per_second // 10):
        problem = f"its header states {stated} samples, but more follow"
    elif not stated:
        problem = "it holds no samples"
    return Header(rate, channels, min(stated, held), problem)


def _has_more_samples(file: BinaryIO, position: int, size: int, least: int) -> bool:
    """True if at least `least` bytes that are no chunks of a WAV file stand at the end of the file."""
    while size - position >= max(8, least):
        file.seek(position)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], "little")
        if not chunk[:4].isascii() or not chunk[:4].decode().isprintable() or length > size - position - 8:
            return True
        position += 8 + length + length % 2
    return False


def _read_by_soundfile(path: str | Path) -> Header:
    import soundfile

    try:
        with soundfile.SoundFile(os.fsencode(path)) as audio:  # as text, a name must be UTF-8
            rate, channels, frames = audio.samplerate, audio.channels, audio.frames
            if frames == 0:
                return Header(rate, channels, 0, "it holds no samples")
            # The header of a truncated file is intact.
            last = min(160, frames)
            audio.seek(frames - last)
            read = len(audio.read(last, dtype="float32"))
    except soundfile.SoundFileError as error:
        return Header(0, 0, 0, " ".join(str(getattr(error, "error_string", error)).split()))
    problem = f"it ends before the {frames} samples that its header states" if read < last else ""
    return Header(rate, channels, frames, problem)
