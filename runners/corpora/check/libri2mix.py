"""Check of Libri2Mix (SD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, check_split_names, existing_file, existing_folder
from runners.corpora.ground_truth import read_rttm
from upstreams.errors import UserError


def check_sd(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the files of Kaldi's data folders, every mixture, and the reference segments of the test set."""
    check_split_names(splits)
    for split in splits:
        folder = existing_folder(Path(expert["loaderrc"][f"{split}_dir"]))
        tables = {}
        for part in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur"):
            tables[part] = existing_file(folder / part).read_text(encoding="utf-8").splitlines()
        recordings = {}
        for number, line in enumerate(tables["wav.scp"], 1):
            recording, _, path = line.strip().partition(" ")
            if not path or path.endswith("|"):  # a command of Kaldi, which is not run
                raise UserError(f"{folder / 'wav.scp'}, line {number}: expected `<recording> <file>.wav`, got {line!r}")
            recordings[recording] = Path(path.strip())
        if not recordings:
            raise UserError(f"{folder / 'wav.scp'} lists no recording")
        check_audio(recordings.values())
        for part, column in (("segments", 1), ("reco2dur", 0)):
            listed = {words[column] for line in tables[part] if len(words := line.split()) > column}
            if unlisted := recordings.keys() - listed:
                raise UserError(f"{folder / part} has no line for the recording {min(unlisted)}")
        if split == "test":
            reference = read_rttm(folder / "rttm")
            if unlisted := recordings.keys() - reference.keys():
                raise UserError(f"{folder / 'rttm'} has no line for the recording {min(unlisted)}")
