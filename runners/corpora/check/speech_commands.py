"""Check of Speech Commands (KS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import check_audio, check_split_names, existing_folder, recordings
from runners.corpora.published import KEYWORDS, NOISE
from upstreams.errors import UserError, nearest


def check_ks(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the recordings of the words and of the background noise, and the twelve folders of the test set."""
    check_split_names(splits)
    train = existing_folder(Path(expert["datarc"]["speech_commands_root"]))
    test = existing_folder(Path(expert["datarc"]["speech_commands_test_root"]))
    classes = (*KEYWORDS, "_unknown_", "_silence_")
    _check_recordings(train, (NOISE, *KEYWORDS))
    for name in _check_recordings(test, classes):
        if name not in classes:
            raise UserError(f"{test / name} is no class of the test set: {nearest(name, classes)}")
    noises = [name for name in recordings(train) if name.startswith(f"{NOISE}/")]
    for noise, header in zip(noises, check_audio(train, noises, rate=None, mono=False), strict=True):
        if (duration := header.frames / header.rate) < 1:
            raise UserError(
                f"{train / noise} is {duration:.2f} s long: s3prl cuts silence from background noise of at least 1 s"
            )


def _check_recordings(root: Path, needed: Sequence[str]) -> list[str]:
    """Check the needed folders and every recording below `root`; return the names of all folders with recordings."""
    names = recordings(root)
    folders = dict.fromkeys(name.partition("/")[0] for name in names)
    for name in needed:
        if name not in folders:
            existing_folder(root / name)
            raise UserError(f"the folder {root / name} holds no .wav file")
    check_audio(root, names, rate=None, mono=False)
    return list(folders)
