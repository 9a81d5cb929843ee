"""Checks of VoxCeleb1: the lists of SID and ASV, and every file that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, check_split_names, existing_file, existing_folder
from runners.corpora.published import VOXCELEB_SPEAKERS
from upstreams.errors import UserError


def check_sid(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that every file of the list exists, and that s3prl's classifier has an output for its speaker."""
    check_split_names(splits)
    datarc = expert["datarc"]
    root = existing_folder(Path(datarc["file_path"]))
    halves = [existing_folder(root / half / "wav") for half in ("dev", "test")]
    listing = existing_file(Path(datarc["meta_data"]), prepared_for="sid")
    files: dict[str, list[Path]] = {"1": [], "2": [], "3": []}
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        split, _, name = line.strip().partition(" ")
        speaker = name.partition("/")[0].removeprefix("id")
        if split not in files or not speaker.isdigit() or int(speaker) not in VOXCELEB_SPEAKERS:
            raise UserError(
                f"{listing}, line {number}: expected `1|2|3 id10001..id11251/<video>/<n>.wav`, got {line!r}"
            )
        found = [half / name for half in halves if (half / name).is_file()]
        if not found:
            raise UserError(f"the file {halves[0] / name} is missing; line {number} of {listing} names it")
        files[split] += found
    for split, name in zip(files, ("train", "dev", "test"), strict=True):
        if not files[split]:
            raise UserError(f"{listing} has no line for {name}: such lines begin with {split}")
        check_audio(files[split][:1])


def check_asv(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that there are speakers to train on, trials of both kinds, and every file that the trials name."""
    for split in splits:
        if split not in ("train", "test"):
            raise UserError(f"s3prl scores no split {split!r} of asv: valid are train and test")
    datarc = expert["datarc"]
    dev, test = (existing_folder(Path(datarc["file_path"], half, "wav")) for half in ("dev", "test"))
    if len([folder for folder in dev.iterdir() if folder.is_dir()]) < 2:
        raise UserError(f"{dev} holds fewer than two speakers' folders: <id1xxxx>/<video>/<n>.wav is expected there")
    listing = existing_file(Path(datarc["test_meta_data"]))
    files: dict[Path, None] = {}
    labels = set()
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise UserError(f"{listing}, line {number}: expected `0|1 <file> <file>`, got {line!r}")
        labels.add(words[0])
        files |= dict.fromkeys(test / name for name in words[1:])
    if labels != {"0", "1"}:
        raise UserError(f"{listing} must hold trials of the same speaker (1) and of different speakers (0)")
    check_audio(files)
