"""Lists of audio lengths, from which s3prl's ASR makes batches.

FOLDER/<set>.csv has a line `,file_path,length,label` for each .flac of the set, longest first, with lengths in samples.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from runners.corpora.files import check_audio, read_table
from upstreams.audio_files import find_audio
from upstreams.errors import UserError
from upstreams.s3prl.made_files import digest, making


def measured_lengths(librispeech: str | Path, name: str) -> dict[str, int]:
    """Return path below LibriSpeech -> length in samples of each .flac file of a set, sorted by path.

    Raises UserError for a set that is missing or empty, and for a file that is damaged.
    """
    folder = Path(librispeech, name)
    files = [f"{name}/{file}" for file in find_audio(folder, (".flac",))] if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} holds no .flac file: expected <speaker>/<chapter>/<utterance>.flac")
    headers = check_audio(Path(librispeech), files)
    return {file: header.frames for file, header in zip(files, headers, strict=True)}


def source_of(lengths: Mapping[str, int]) -> str:
    """Return the digest that a list is made from: paths and lengths."""
    return digest(item for row in sorted(lengths.items()) for item in row)


def write_bucket_files(librispeech: str | Path, folder: str | Path, sets: Iterable[str]) -> list[Path]:
    """Write FOLDER/<set>.csv for each set from the headers of its audio files; return the paths.

    Raises UserError as `measured_lengths` does.
    """
    return [write_list(Path(folder, f"{name}.csv"), measured_lengths(librispeech, name)) for name in sets]


def write_list(path: Path, lengths: Mapping[str, int]) -> Path:
    """Write the list of a set's lengths; return its path."""
    rows = sorted(lengths.items(), key=lambda row: row[1], reverse=True)
    with making(path, source_of(lengths)) as temporary, temporary.open("w", encoding="utf-8", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(["", "file_path", "length", "label"])
        for index, (file, length) in enumerate(rows):
            writer.writerow([index, file, length, ""])
    return path


def listed_lengths(listing: Path) -> list[tuple[str, int]]:
    """Return (path below LibriSpeech, length in samples) of each row of a list.

    Raises UserError if it has no row, or a length is not a number.
    """
    rows = read_table(listing, "file_path", "length")
    if not rows:
        raise UserError(f"{listing} lists no utterance; delete it, then `superbit corpus prepare asr` makes it again")
    for file, length in rows:
        if not length.isdecimal():
            raise UserError(f"{listing} gives the length {length!r} to {file}: a number of samples is expected")
    return [(file, int(length)) for file, length in rows]
