"""Checks of the corpora: the error names what is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runners.corpora.check import check_config, check_corpus
from runners.tasks import SEVEN, TASKS, task_config
from upstreams.errors import UserError


@pytest.mark.parametrize("task", SEVEN)
def test_tiny_corpora_are_complete(task: str, tiny_corpora: Path) -> None:
    check_corpus(task, tiny_corpora)


def _edit(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).write_text(edit((root / name).read_text()))

    return apply


def _remove(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return apply


def _replace(name: str, rate: int = 16000, channels: int = 1) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).unlink()
        soundfile.write(root / name, np.zeros((rate // 2, channels), np.float32), rate)

    return apply


def _garble(name: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).write_bytes(b"no audio")

    return apply


LIBRI = "LibriSpeech/test-clean/102/1/102-1-0000.flac"
LONGEST = "LibriSpeech/dev-clean/101/2/101-2-0002.flac"
VOX = "VoxCeleb1/dev/wav/id10001/video0/00001.wav"
FSC = "fluent_speech_commands_dataset"
KS = "speech_commands_v0.01"
SES = "IEMOCAP/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F003.wav"

DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("asr", _remove("LibriSpeech"), "LibriSpeech/train-clean-100 is missing"),
    ("asr", _remove("LibriSpeech/dev-clean"), "LibriSpeech/dev-clean is missing"),
    ("asr", _remove("len_for_bucket/test-clean.csv"), r"test-clean\.csv is missing; `superbit corpus prepare asr`"),
    ("asr", _remove(LIBRI), f"{LIBRI} is missing"),
    ("asr", _remove("LibriSpeech/dev-clean/101/1/101-1.trans.txt"), r"101-1\.trans\.txt is missing"),
    (
        "asr",
        _edit("len_for_bucket/dev-clean.csv", lambda text: text.replace("file_path", "path")),
        "column 'file_path'",
    ),
    ("asr", _garble(LONGEST), f"cannot read the audio file .*{LONGEST}"),
    ("asr", _replace(LONGEST, rate=8000), "8000 Hz and 1 channels: 16000 Hz mono"),
    ("asr", _replace(LONGEST, channels=2), "2 channels"),
    ("pr", _remove("lexicon"), r"librispeech-lexicon\*\.txt is missing"),
    ("pr", _edit("lexicon/librispeech-lexicon.txt", lambda text: text.replace("ZOO", "ZU")), "lacks the word 'ZOO'"),
    ("pr", _edit("lexicon/librispeech-lexicon.txt", lambda text: text.replace("UW1", "UW9")), "the phone 'UW9'"),
    ("pr", _edit("LibriSpeech/test-clean/102/2/102-2.trans.txt", lambda text: text[10:]), "has no line in"),
    ("ks", _remove(f"{KS}/_background_noise_"), "_background_noise_ is missing"),
    ("ks", _remove(f"{KS}/_background_noise_/hum.wav"), r"_background_noise_ holds no \.wav"),
    ("ks", _replace(f"{KS}/_background_noise_/hum.wav"), r"hum\.wav is 0\.50 s long"),
    ("ks", _remove(f"{KS}/go"), f"{KS}/go is missing"),
    ("ks", _remove("speech_commands_test_set_v0.01/_silence_"), "_silence_ is missing"),
    ("sid", _remove("VoxCeleb1/veri_test_class.txt"), r"veri_test_class\.txt is missing"),
    ("sid", _remove(VOX), f"{VOX} is missing"),
    ("sid", _edit("VoxCeleb1/veri_test_class.txt", lambda text: text.replace("10270", "20270")), "line 5: expected"),
    ("sid", _edit("VoxCeleb1/veri_test_class.txt", lambda text: text.replace("3 ", "1 ")), "no line for test"),
    ("er", _remove("IEMOCAP/meta_data"), r"Session1/train_meta_data\.json is missing"),
    ("er", _remove(SES), f"{SES} is missing"),
    ("er", _edit("IEMOCAP/meta_data/Session1/test_meta_data.json", lambda text: text[:-1]), "must hold `labels`"),
    (
        "er",
        _edit(
            "IEMOCAP/meta_data/Session1/test_meta_data.json",
            lambda text: json.dumps(json.loads(text) | {"labels": {"sad": 0, "ang": 1, "hap": 2}}),
        ),
        "unknown label 'neu'",
    ),
    ("ic", _remove(f"{FSC}/data/valid_data.csv"), r"valid_data\.csv is missing"),
    ("ic", _remove(f"{FSC}/wavs/speakers/testspeaker/3.wav"), r"testspeaker/3\.wav is missing"),
    ("ic", _edit(f"{FSC}/data/test_data.csv", lambda text: text.replace("kitchen", "garden")), "location 'garden'"),
    ("ic", _edit(f"{FSC}/data/test_data.csv", lambda text: text.splitlines()[0]), "lists no utterance"),
    ("sf", _remove("SNIPS/slots.txt"), r"slots\.txt is missing"),
    ("sf", _remove("SNIPS/all.iob.snips.txt"), r"all\.iob\.snips\.txt is missing"),
    ("sf", _remove("SNIPS/valid"), "SNIPS/valid is missing"),
    ("sf", _edit("SNIPS/slots.txt", lambda text: text.replace("city", "town")), "the slot 'city'"),
    ("sf", _edit("SNIPS/all.iob.snips.txt", lambda text: text.replace("\t", " ")), "line 1: expected"),
    ("sf", _edit("SNIPS/all.iob.snips.txt", lambda text: text.replace("Brian", "Bruno")), "Brian, Emma"),
    (
        "sf",
        _edit(
            "SNIPS/all.iob.snips.txt",
            lambda text: text.replace("city city", "O O").replace("artist", "O").replace("genre", "O"),
        ),
        "has a slot",
    ),
]


@pytest.mark.parametrize(("task", "damage", "message"), DAMAGES)
def test_a_damaged_corpus_is_refused(
    task: str, damage: Callable[[Path], None], message: str, tiny_corpora: Path, tmp_path: Path
) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        check_corpus(task, root)
    assert f"The layout expected for {task}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_the_splits_in_use_are_checked(tiny_corpora: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    shutil.rmtree(root / "LibriSpeech" / "train-clean-100")
    config = task_config("asr", root)
    check_config(TASKS["asr"], config, ["test-clean"])
    with pytest.raises(UserError, match="no split 'test-claen': did you mean 'test-clean'"):
        check_config(TASKS["asr"], config, ["test-claen"])
    with pytest.raises(UserError, match="no split 'devel': did you mean 'dev'"):
        check_config(TASKS["er"], task_config("er", root), ["devel"])
