"""Check of Speech Commands (KS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, check_split_names, existing_folder
from runners.corpora.published import KEYWORDS
from upstreams.errors import UserError


def check_ks(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the folders of the words and of the background noise, and the twelve folders of the test set."""
    check_split_names(splits)
    train = existing_folder(Path(expert["datarc"]["speech_commands_root"]))
    test = existing_folder(Path(expert["datarc"]["speech_commands_test_root"]))
    background = train / "_background_noise_"
    words = [part / word for part in (train, test) for word in KEYWORDS]
    for folder in (background, *words, test / "_unknown_", test / "_silence_"):
        files = sorted(existing_folder(folder).glob("*.wav"))
        if not files:
            raise UserError(f"the folder {folder} holds no .wav file")
        check_audio(files[:1], rate=None)
    for noise in sorted(background.glob("*.wav")):
        _check_one_second(noise)


def _check_one_second(noise: Path) -> None:
    import soundfile

    if (duration := soundfile.info(noise).duration) < 1:
        raise UserError(f"{noise} is {duration:.2f} s long: s3prl cuts silence from background noise of at least 1 s")
