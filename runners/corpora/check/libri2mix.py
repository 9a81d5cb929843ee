"""Check of Libri2Mix (SD)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import check_audio, check_split_names, check_unique, existing_file, existing_folder
from runners.corpora.ground_truth import read_rttm
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import universal_lines
from upstreams.s3prl.recordings import read_recordings

TOLERANCE = 0.05  # seconds by which reco2dur may differ from the audio


def check_sd(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the files of Kaldi's data folders, every mixture, and the reference segments of the test set."""
    check_split_names(splits)
    for split in splits:
        folder = existing_folder(Path(expert["loaderrc"][f"{split}_dir"]))
        recordings = read_recordings(existing_file(folder / "wav.scp").parent)
        if not recordings:
            raise UserError(f"{folder / 'wav.scp'} lists no recording")
        check_unique([recording for recording, _ in recordings], folder / "wav.scp")
        headers = check_audio(folder, [str(path.absolute()) for _, path in recordings])
        seconds = {name: header.frames / SAMPLE_RATE for (name, _), header in zip(recordings, headers, strict=True)}
        _check_durations(folder, seconds)
        _check_segments(folder, seconds.keys(), expert["datarc"]["num_speakers"])
        _read_table(folder / "spk2utt", 2)
        if split == "test":
            reference = read_rttm(folder / "rttm")
            if unlisted := seconds.keys() - reference.keys():
                raise UserError(f"{folder / 'rttm'} has no line for the recording {min(unlisted)}")


def _read_table(path: Path, columns: int) -> list[list[str]]:
    """Return the words of each line; raise UserError for a line with fewer than `columns` words."""
    rows = []
    for number, line in enumerate(universal_lines(existing_file(path)), 1):
        if len(words := line.split()) < columns:
            raise UserError(f"{path}, line {number}: expected {columns} words, got {line!r}")
        rows.append(words)
    return rows


def _check_durations(folder: Path, seconds: Mapping[str, float]) -> None:
    path = folder / "reco2dur"
    stated = {words[0]: words[1] for words in _read_table(path, 2)}
    if unlisted := seconds.keys() - stated.keys():
        raise UserError(f"{path} has no line for the recording {min(unlisted)}")
    for recording, duration in seconds.items():
        try:
            difference = abs(float(stated[recording]) - duration)
        except ValueError:
            raise UserError(f"{path} gives {stated[recording]!r} seconds to {recording}") from None
        if difference > TOLERANCE:
            raise UserError(f"{path} gives {stated[recording]} s to {recording}, whose audio has {duration:.3f} s")


def _check_segments(folder: Path, recordings: Iterable[str], most: int) -> None:
    speaker_of = {words[0]: words[1] for words in _read_table(folder / "utt2spk", 2)}
    speakers: dict[str, set[str]] = {}
    for words in _read_table(folder / "segments", 4):
        if len(words) != 4:
            raise UserError(
                f"{folder / 'segments'}: expected `<segment> <recording> <begin> <end>`, got {' '.join(words)!r}"
            )
        if words[0] not in speaker_of:
            raise UserError(f"{folder / 'utt2spk'} has no line for the segment {words[0]}")
        speakers.setdefault(words[1], set()).add(speaker_of[words[0]])
    for recording in recordings:
        if recording not in speakers:
            raise UserError(f"{folder / 'segments'} has no line for the recording {recording}")
        if len(speakers[recording]) > most:
            raise UserError(f"{folder / 'segments'} gives {recording} {len(speakers[recording])} speakers, not {most}")
