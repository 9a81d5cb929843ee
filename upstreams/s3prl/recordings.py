"""Kaldi's wav.scp: the audio file of each recording."""

from __future__ import annotations

from pathlib import Path

from upstreams.errors import UserError
from upstreams.files import universal_lines


def read_recordings(folder: Path) -> list[tuple[str, Path]]:
    """Return names and audio files of the recordings that wav.scp in `folder` lists.

    A relative path is looked up from `folder`, and if there is no such file, from the current folder, as Kaldi does.
    So a corpus may lie in a folder whose name this format of lines cannot hold. Raises UserError if there is no
    wav.scp, and for a line that names no file: a command of Kaldi is not run.
    """
    listing, found = folder / "wav.scp", []
    for number, line in enumerate(universal_lines(listing), 1):
        words = line.strip().split(None, 1)
        if len(words) != 2 or words[1].endswith("|"):
            raise UserError(f"{listing}, line {number}: expected `<recording> <file>.wav`, got {line!r}")
        found.append((words[0], _located(folder, Path(words[1]))))
    return found


def _located(folder: Path, file: Path) -> Path:
    is_elsewhere = not file.is_absolute() and file.exists() and not (folder / file).exists()
    return file.absolute() if is_elsewhere else folder / file
