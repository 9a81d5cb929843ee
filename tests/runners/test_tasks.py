"""The tasks' configurations and the check of their corpora."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from runners import tasks
from runners.corpora.bucket_files import write_bucket_files
from runners.tasks import SEVEN, TASKS, check_corpus, task_config
from tests.runners.official import OFFICIAL
from upstreams.errors import UserError

# Files of a decoder with a language model, which SUPERB does not use: the official ones lie on somebody's disk.
UNUSED = ("decoder_args.kenlm_model", "decoder_args.lexicon")


@pytest.mark.parametrize("task", TASKS)
def test_official_settings_field_by_field(task: str) -> None:
    """Every field that is no path, in both directions; paths are those of the corpora and the package."""
    config = task_config(task, "/corpora")
    paths = {*tasks.path_keys(TASKS[task])}
    found = {
        key: value
        for key, value in tasks.flat_keys(config)
        if key not in paths and not isinstance(value, dict) and not key.endswith(UNUSED)
    }
    official = {key: value for key, value in tasks.flat_keys(OFFICIAL[task]) if not isinstance(value, dict)}
    assert found == official


def test_no_path_outside_the_corpora_and_the_package() -> None:
    for task in TASKS.values():
        config = dict(tasks.flat_keys(task_config(task.name, "/corpora")))
        paths = [value for value in config.values() if isinstance(value, str) and "/" in value]
        assert paths and all(path.startswith(("/corpora/", str(tasks.CONFIGS))) for path in paths)
        assert tasks.missing_root(task_config(task.name, "/corpora")) is None
        assert tasks.missing_root(tasks.read_config(task.config_file, None)) in tasks.path_keys(task)


def test_packaged_vocabularies() -> None:
    characters = (tasks.CONFIGS / "sf" / "character.txt").read_text().split("\n")
    assert characters == [" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'", ""]
    symbols = [line.split(" ") for line in (tasks.CONFIGS / "asr" / "char.dict").read_text().splitlines()]
    assert {symbol for symbol, _ in symbols} == {"|", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    counts = [int(count) for _, count in symbols]
    assert counts == sorted(counts, reverse=True)  # its order is that of the classes in published checkpoints
    phones = (tasks.CONFIGS / "pr" / "phoneme.txt").read_text().split()
    assert phones[:2] == ["SIL", "SPN"] and len(phones) == len(set(phones)) == 71
    assert len({phone.rstrip("012") for phone in phones[2:]}) == 39


def test_lexicons_and_vocabulary_come_from_the_corpora_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "lexicon").mkdir()
    for name in ("librispeech-lexicon-allothers-g2p.txt", "librispeech-lexicon-200k-g2p.txt", "phoneme.txt"):
        (tmp_path / "lexicon" / name).touch()
    expert = task_config("pr", tmp_path)["downstream_expert"]
    names = [Path(path).name for path in expert["corpus"]["lexicon"]]
    assert names == ["librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt"]
    assert expert["text"]["vocab_file"] == str(tmp_path / "lexicon" / "phoneme.txt")


def test_overrides() -> None:
    config = task_config(
        "ks", "/c", {"runner.total_steps": 3, "optimizer.lr": 1, "scheduler.num_warmup_steps": 2, "runner.fp16": True}
    )
    assert (config["runner"]["total_steps"], config["optimizer"]["lr"]) == (3, 1)
    assert config["scheduler"] == {"num_warmup_steps": 2} and config["runner"]["fp16"] is True
    assert task_config("asr", "/c", {"specaug": None})["specaug"] is None


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("kss", {}, "did you mean 'ks'"),
        ("ks", {"runner.total_step": 3}, r"did you mean 'runner\.total_steps'"),
        ("ks", {"total_steps": 3}, "runner.total_steps"),
        ("ks", {"runner.total_steps": "many"}, "must be a number"),
        ("ks", {"runner.eval_dataloaders": "dev"}, "must be a list"),
        ("ks", {"runner": 3}, "must be a mapping"),
        ("pr", {"downstream_expert.corpus.bucketing": 1}, "must be true or false"),
        ("ks", {"runner.total_steps.x": 3}, "has no key"),
    ],
)
def test_bad_overrides(task: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_config(task, "/c", overrides)


@pytest.mark.parametrize("content", [None, "runner: [", "- a list", "\udcff"])
def test_bad_configuration_files(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.yaml"):
        tasks.read_config(file, None)


def test_a_configuration_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ks lacks the key 'downstream_expert\.datarc\.speech_commands_root'"):
        tasks.check_keys(TASKS["ks"], task_config("ic", tmp_path))


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
    ("er", _edit("IEMOCAP/meta_data/Session1/test_meta_data.json", lambda text: text[:-1]), "must hold labels"),
    (
        "er",
        _edit(
            "IEMOCAP/meta_data/Session1/test_meta_data.json",
            lambda text: json.dumps(json.loads(text) | {"labels": {"sad": 0, "ang": 1, "hap": 2}}),
        ),
        "the label 'neu'",
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
def test_a_damaged_corpus(
    task: str, damage: Callable[[Path], None], message: str, tiny_corpora: Path, tmp_path: Path
) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        check_corpus(task, root)
    assert f"The layout expected for {task}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_what_is_used_must_be_there(tiny_corpora: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    shutil.rmtree(root / "LibriSpeech" / "train-clean-100")
    config = task_config("asr", root)
    tasks.check_config(TASKS["asr"], config, ["test-clean"])
    with pytest.raises(UserError, match="no split 'test-claen': did you mean 'test-clean'"):
        tasks.check_config(TASKS["asr"], config, ["test-claen"])
    with pytest.raises(UserError, match="no split 'devel': did you mean 'dev'"):
        tasks.check_config(TASKS["er"], task_config("er", root), ["devel"])


def test_bucket_files(tiny_corpora: Path, tmp_path: Path) -> None:
    librispeech = tiny_corpora / "LibriSpeech"
    write_bucket_files(librispeech, tmp_path, ["dev-clean"])
    lines = (tmp_path / "dev-clean.csv").read_text().splitlines()
    assert lines[0] == ",file_path,length,label" and len(lines) == 7
    lengths = [int(line.split(",")[2]) for line in lines[1:]]
    assert lengths == sorted(lengths, reverse=True)
    name = lines[1].split(",")[1]
    assert soundfile.info(librispeech / name).frames == lengths[0]
    with pytest.raises(UserError, match=r"dev-claen holds no \.flac file"):
        write_bucket_files(librispeech, tmp_path, ["dev-claen"])


def test_configs_are_package_data() -> None:
    for task in TASKS.values():
        assert isinstance(yaml.safe_load(task.config_file.read_text()), dict)
