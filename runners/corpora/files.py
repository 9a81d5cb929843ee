"""Checks that several tasks share: folders, files, audio, columns of CSV files, and names of splits."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.headers import read_headers
from upstreams.audio_files import Header
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, nearest
from upstreams.files import read_text
from upstreams.s3prl.corpus_path import CorpusPath
from upstreams.s3prl.made_files import State

SHORTEST = 0.025  # seconds: one analysis window of log-mel front-ends, and the receptive field of HuBERT's convolutions


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


def check_fresh(path: Path, state: State, task: str) -> None:
    """Raise UserError if `superbit corpus prepare` made a file from something else than the corpus holds now."""
    if state is State.STALE:
        raise UserError(
            f"{path} is stale: the files that it was made from have changed; `superbit corpus prepare {task}` makes it "
            "again"
        )


def check_audio(
    corpus: Path, names: Sequence[str], *, rate: int | None = SAMPLE_RATE, one_rate: bool = False, mono: bool = True
) -> list[Header]:
    """Return the headers of all files, named by their paths below the corpus.

    Raises UserError for the first file that is missing or damaged, is shorter than `SHORTEST`, has another rate than
    `rate` Hz (None: any; one_rate: that of the first file), or is not mono (unless `mono` is False).
    """
    headers = read_headers(corpus, names)
    first = next((header.rate for header in headers if header is not None), None)
    expected = first if one_rate else rate
    checked = []
    for name, header in zip(names, headers, strict=True):
        file = corpus / name if header is None or header.problem else None
        if header is None:
            raise UserError(f"the file {file} is missing")
        if header.problem:
            raise UserError(f"cannot read the audio file {file}: {header.problem}")
        if (expected is not None and header.rate != expected) or (mono and header.channels != 1):
            wanted = "one channel" if expected is None else f"{expected} Hz mono"
            reason = (
                f", as the first file of the list has {expected} Hz and s3prl resamples all alike" if one_rate else ""
            )
            raise UserError(
                f"{corpus / name} has {header.rate} Hz and {header.channels} channels: {wanted} is expected{reason}"
            )
        if header.frames < SHORTEST * header.rate:
            raise UserError(
                f"{corpus / name} is {header.frames / header.rate:.3f} s long: an upstream needs at least {SHORTEST} s"
            )
        checked.append(header)
    return checked


def check_unique(names: Sequence[str], listing: str | Path) -> None:
    """Raise UserError for a name that occurs twice: its file would be trained on, or scored, twice."""
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise UserError(f"{listing} lists {twice} twice")


def read_table(listing: Path, *columns: str) -> list[list[str]]:
    """Return the values of these columns in each row of a CSV file with a header.

    Raises UserError if the file or one of the columns is missing, and for a row without a value in one of them.
    """
    rows = csv.reader(io.StringIO(read_text(existing_file(listing), skip_mark=True), newline=""))
    header = next(rows, [])
    for name in columns:
        if name not in header:
            raise UserError(f"{listing} has no column {name!r}")
    positions = [header.index(name) for name in columns]
    table = []
    for row in rows:
        if not row:  # a blank line
            continue
        values = [row[position] if position < len(row) else "" for position in positions]
        if "" in values:
            raise UserError(f"{listing}, line {rows.line_num}: the column {columns[values.index('')]!r} is empty")
        table.append(values)
    return table


def recordings(root: Path) -> list[str]:
    """Return the paths of the .wav files in the folders below `root`, which are all that s3prl finds, sorted."""
    return [
        f"{folder.name}/{file.name}"
        for folder in CorpusPath(root).iterdir()
        if folder.is_dir()
        for file in folder.glob("*.wav")
    ]


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
