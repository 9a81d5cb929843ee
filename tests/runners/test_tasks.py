"""The tasks' configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runners import tasks
from runners.tasks import TASKS, check_kind, task_config
from tests.runners.official import OFFICIAL
from upstreams.errors import UserError

# Files of a decoder with a language model, which SUPERB does not use; the official values are paths of one machine.
UNUSED = ("decoder_args.kenlm_model", "decoder_args.lexicon")


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_is_the_official_one(task: str) -> None:
    """No field is missing or added; paths, which are of the corpora and the package, are left out."""
    config = task_config(task, "/corpora")
    paths = {*tasks.path_keys(TASKS[task])}
    found = {
        key: value
        for key, value in tasks.flat_keys(config)
        if key not in paths and not isinstance(value, dict) and not key.endswith(UNUSED)
    }
    official = {key: value for key, value in tasks.flat_keys(OFFICIAL[task]) if not isinstance(value, dict)}
    assert found == official


def test_all_paths_are_inside_the_corpora_or_the_package() -> None:
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
    assert counts == sorted(counts, reverse=True)  # the order of the classes in published checkpoints
    phones = (tasks.CONFIGS / "pr" / "phoneme.txt").read_text().split()
    assert phones[:2] == ["SIL", "SPN"] and len(phones) == len(set(phones)) == 71
    assert len({phone.rstrip("012") for phone in phones[2:]}) == 39


def test_lexicons_and_vocabulary_of_the_corpora_are_preferred(tmp_path: Path) -> None:
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
def test_bad_overrides_are_refused(task: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_config(task, "/c", overrides)


@pytest.mark.parametrize("content", [None, "runner: [", "- a list", "\udcff"])
def test_bad_configuration_files_are_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.yaml"):
        tasks.read_config(file, None)


def test_a_configuration_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ks lacks the key 'downstream_expert\.datarc\.speech_commands_root'"):
        tasks.check_keys(TASKS["ks"], task_config("ic", tmp_path))


def test_configs_are_package_data() -> None:
    for task in TASKS.values():
        assert isinstance(yaml.safe_load(task.config_file.read_text()), dict)


def test_a_long_value_of_a_key_is_shortened_in_the_message() -> None:
    with pytest.raises(UserError) as caught:
        check_kind("optimizer.lr", f"{'9' * 5000}e{'9' * 5000}", 1e-4)
    assert len(str(caught.value)) < 300
