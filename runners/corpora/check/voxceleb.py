"""Checks of VoxCeleb1: the lists of SID and ASV, and every file that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import (
    check_audio,
    check_fresh,
    check_split_names,
    check_unique,
    existing_file,
    existing_folder,
)
from runners.corpora.headers import read_headers
from runners.corpora.published import VOXCELEB_SPEAKERS
from upstreams.audio_files import find_audio, is_hidden
from upstreams.errors import UserError
from upstreams.files import sha256, universal_lines
from upstreams.s3prl.made_files import state


def check_sid(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that every file of the list exists, and that s3prl's classifier has an output for its speaker."""
    check_split_names(splits)
    datarc = expert["datarc"]
    root = existing_folder(Path(datarc["file_path"]))
    for half in ("dev", "test"):
        existing_folder(root / half / "wav")
    listing = existing_file(Path(datarc["meta_data"]), prepared_for="sid")
    found = set()
    names: list[str] = []
    for number, line in enumerate(universal_lines(listing), 1):
        words = line.split()
        name = words[1] if len(words) == 2 else ""
        speaker = name.partition("/")[0].removeprefix("id")
        is_known = speaker.isdecimal() and int(speaker) in VOXCELEB_SPEAKERS
        if words[:1] not in (["1"], ["2"], ["3"]) or name.count("/") != 2 or not is_known:
            raise UserError(
                f"{listing}, line {number}: expected `1|2|3 id10001..id11251/<video>/<n>.wav`, got {line!r}"
            )
        found.add(words[0])
        names.append(name)
    check_unique(names, listing)
    for split, name in zip("123", ("train", "dev", "test"), strict=True):
        if split not in found:
            raise UserError(f"{listing} has no line for {name}: such lines begin with {split}")
    check_audio(root, _find(root, names, listing))
    official = root / "iden_split.txt"
    if official.is_file():
        check_fresh(listing, state(listing, sha256(official)), "sid")


def _find(root: Path, names: Sequence[str], listing: Path) -> list[str]:
    """Return the path below `root` that s3prl opens for each name: in the first folder <half>/wav that has it."""
    halves = sorted(
        folder.name for folder in root.iterdir() if (folder / "wav").is_dir() and not is_hidden(folder.name)
    )
    left = dict(enumerate(names))
    found: dict[int, str] = {}
    for half in halves:
        candidates = {number: f"{half}/wav/{name}" for number, name in left.items()}
        headers = read_headers(root, list(candidates.values()))
        for (number, candidate), header in zip(candidates.items(), headers, strict=True):
            if header is not None:
                found[number] = candidate
                del left[number]
    for number, name in left.items():
        raise UserError(
            f"the file {root / halves[0] / 'wav' / name} is missing; line {number + 1} of {listing} names it"
        )
    return [found[number] for number in range(len(names))]


def check_asv(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that there are speakers to train on, trials of both kinds, and every file that is trained on or tried."""
    for split in splits:
        if split not in ("train", "test"):
            raise UserError(f"s3prl scores no split {split!r} of asv: valid are train and test")
    datarc = expert["datarc"]
    dev, test = (existing_folder(Path(datarc["file_path"], half, "wav")) for half in ("dev", "test"))
    if len([folder for folder in dev.iterdir() if folder.is_dir() and not is_hidden(folder.name)]) < 2:
        raise UserError(f"{dev} holds fewer than two speakers' folders: <id1xxxx>/<video>/<n>.wav is expected there")
    listing = existing_file(Path(datarc["test_meta_data"]))
    files: dict[str, None] = {}
    labels = set()
    for number, line in enumerate(universal_lines(listing), 1):
        words = line.split()
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise UserError(f"{listing}, line {number}: expected `0|1 <file> <file>`, got {line!r}")
        labels.add(words[0])
        files |= dict.fromkeys(words[1:])
    if labels != {"0", "1"}:
        raise UserError(f"{listing} must hold trials of the same speaker (1) and of different speakers (0)")
    check_audio(test, list(files), rate=None, mono=False)
    if "train" in splits:
        training = find_audio(dev)
        for name in training:
            if name.count("/") != 2:
                raise UserError(f"{dev / name} must be <id1xxxx>/<video>/<n>.wav below {dev}")
        check_audio(dev, training, rate=None, mono=False)
