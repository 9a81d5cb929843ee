"""Checks that several tasks share: folders, files, audio, columns of CSV files, and names of splits."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, nearest


def existing_folder(path: Path) -> Path:
    """Return the path of a folder; raise UserError if it is missing."""
    if not path.is_dir():
        raise UserError(f"the folder {path} is missing")
    return path


def existing_file(path: Path, prepared_for: str = "") -> Path:
    """Return the path of a file; raise UserError if it is missing.

    prepared_for: the task for which `superbit corpus prepare` makes the file; empty for a file of the download.
    """
    if not path.is_file():
        remedy = f"; `superbit corpus prepare {prepared_for}` makes it" if prepared_for else ""
        raise UserError(f"the file {path} is missing{remedy}")
    return path


def check_audio(files: Iterable[Path], rate: int | None = SAMPLE_RATE) -> None:
    """Raise UserError unless all files exist and the first of them is mono audio at `rate` Hz (None: any audio)."""
    import soundfile

    first = None
    for file in files:
        existing_file(file)
        first = first or file
    if first is None:
        return
    try:
        info = soundfile.info(first)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot read the audio file {first}: {getattr(error, 'error_string', error)}") from None
    if rate is not None and (info.samplerate != rate or info.channels != 1):
        raise UserError(f"{first} has {info.samplerate} Hz and {info.channels} channels: {rate} Hz mono is expected")


def column(listing: Path, name: str) -> list[str]:
    """Return one column of a CSV file with a header; raise UserError if the file or the column is missing."""
    with existing_file(listing).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if name not in (reader.fieldnames or []):
            raise UserError(f"{listing} has no column {name!r}")
        return [row[name] for row in reader]


def split_folders(settings: Mapping[str, Any], splits: Sequence[str]) -> list[list[str]]:
    """Return the folders of each split from a configuration of s3prl; raise UserError for an unknown split."""
    known = {key: value for key, value in settings.items() if key.startswith(("train", "dev", "test"))}
    known = {key: value for key, value in known.items() if isinstance(value, list) and "speakers" not in key}
    check_split_names(splits, known)
    return [known[split] for split in splits]


def check_split_names(splits: Sequence[str], known: Iterable[str] = ("train", "dev", "test")) -> None:
    """Raise UserError for a split that is not known, naming the nearest one."""
    known = tuple(known)
    for split in splits:
        if split not in known:
            raise UserError(f"there is no split {split!r}: {nearest(split, known)}")
