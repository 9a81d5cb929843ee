"""Results say what they depart from: the sizes of the published corpora and the official settings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runners.corpora.counts import COUNTERS
from runners.corpora.published import COUNTS
from runners.features.settings import StoreSettings
from runners.matrix import run as matrix
from runners.matrix.cell import Cell, finished
from runners.matrix.protocol import compare
from runners.tasks import SEVEN, task_config
from tests.runners.matrix.fakes import FakeDownstream, results, write_matrix
from upstreams.files import write_json

TASKS = [task for task in SEVEN if task != "er"]  # of whose five sessions the tiny corpora have two
HARMLESS = {"runner.log_step": 7, "runner.save_step": 7, "optimizer.lr": 0.5, "runner.max_keep": 3}


def cell(task: str, corpora: Path, folder: Path, **overrides: Any) -> Cell:
    """Return a cell of an upstream without a checkpoint, with changes of the official settings by dotted keys."""
    return Cell(
        label="fbank",
        upstream="fbank",
        checkpoint=None,
        checkpoint_sha256=None,
        task=task,
        seed=1,
        configs=(task_config(task, corpora, overrides),),
        learning_rates=(),
        corpora=corpora,
        contents=({},),
        code={},
        versions={},
        device="cpu",
        store=None,
        folder=folder / f"cells/fbank/{task}/seed1",
    )


@pytest.fixture
def published_sizes(tiny_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny corpora have exactly the published sizes."""
    for task in TASKS:
        counted = COUNTERS[task](task_config(task, tiny_corpora)["downstream_expert"])
        monkeypatch.setitem(COUNTS, task, [counted])


@pytest.mark.parametrize("task", TASKS)
def test_published_sizes_and_official_settings_deviate_in_nothing(
    tiny_corpora: Path, tmp_path: Path, published_sizes: None, task: str
) -> None:
    (fold,) = cell(task, tiny_corpora, tmp_path, **HARMLESS).folds
    assert compare(fold) == {"corpus": {"speech": "real", "label": "as published"}, "deviations": []}


@pytest.mark.parametrize(
    ("task", "overrides", "deviation"),
    [
        ("ks", {"runner.total_steps": 300}, "runner.total_steps 300 instead of 200000"),
        ("ks", {"runner.eval_dataloaders": ["test"]}, "runner.eval_dataloaders ['test'] instead of ['dev', 'test']"),
        ("ks", {"scheduler.name": "linear_schedule_with_warmup"}, "scheduler {'name': 'linear_schedule_with_warmup'}"),
        ("asr", {"specaug": None}, "specaug changed"),
        ("sid", {"downstream_expert.datarc.train_batch_size": 32}, "datarc.train_batch_size 32 instead of 8"),
        (
            "sf",
            {"downstream_expert.model.RNNs.module": "RNN"},
            "downstream_expert.model.RNNs.module RNN instead of LSTM",
        ),
        ("asr", {"downstream_expert.datarc.dict_path": "DICT"}, "instead of the packaged char.dict"),
    ],
)
def test_changed_settings_are_named(
    tiny_corpora: Path, tmp_path: Path, published_sizes: None, task: str, overrides: dict[str, Any], deviation: str
) -> None:
    (tmp_path / "own.dict").write_text("| 1\n")
    overrides = {key: str(tmp_path / "own.dict") if value == "DICT" else value for key, value in overrides.items()}
    (fold,) = cell(task, tiny_corpora, tmp_path, **overrides).folds
    found = compare(fold)
    assert found["corpus"]["label"] == "as published"
    assert len(found["deviations"]) == 1 and deviation in found["deviations"][0]


def test_a_corpus_of_another_size_is_not_called_as_published(tiny_corpora: Path, tmp_path: Path) -> None:
    (fold,) = cell("ks", tiny_corpora, tmp_path).folds
    found = compare(fold)
    assert found["corpus"] == {"speech": "real", "label": "not as published"}
    assert "33 recordings instead of 64721" in found["deviations"]
    int8 = dataclasses.replace(fold.cell, store=StoreSettings(tmp_path, 1, "int8")).folds[0]
    assert "trained on features in int8" in compare(int8)["deviations"]


def test_a_corpus_that_cannot_be_counted_costs_no_finished_number(tiny_corpora: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora / "speech_commands_v0.01", root / "speech_commands_v0.01")
    shutil.copytree(tiny_corpora / "VoxCeleb1", root / "VoxCeleb1", ignore=shutil.ignore_patterns("*.txt"))
    (fold,) = cell("sid", root, tmp_path).folds
    reason = compare(fold)["deviations"][0]
    assert reason.startswith("the corpus could not be counted (") and "veri_test_class.txt" in reason


def test_results_of_a_run_have_percent_deviations_and_provenance(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml", learning_rates={"ks": [0.01]}), corpora, runs) == 0
    found = results(runs, "fbank_no_cmvn")
    assert (found["value_percent"], found["dev_percent"], found["s3prl_metrics"]["acc"]) == (
        50,
        pytest.approx(100),
        0.5,
    )
    assert not {"value", "dev", "metrics"} & set(found), "a number without its unit"
    assert "runner.total_steps 4 instead of 200000" in found["deviations"]
    assert found["corpus"]["label"] == "not as published"
    assert "cores" in found["machine"] and found["versions"]["torchaudio"] and found["device"] == "cpu"
    said = capsys.readouterr().out
    assert "acc 50.00 %" in said and "dev 100.00 %" in said


def test_strict_parsers_read_the_results_of_asr_whose_settings_hold_an_infinity(
    tiny_corpora: Path, tmp_path: Path
) -> None:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    (fold,) = cell("asr", tiny_corpora, tmp_path).folds
    write_json(fold.results_file, {"identity": fold.identity})
    assert "-Infinity" in str(json.loads(fold.results_file.read_text(), parse_constant=refuse))
    assert finished(fold) is not None, "what is read equals the identity in memory"


def test_seconds_of_the_test_are_its_own_and_costs_are_counted_once_for_a_checkpoint(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    counted = tmp_path / "counted"

    def describe(name: str, ckpt: Path | None) -> dict[str, int]:
        with counted.open("a") as file:  # the cells run in processes of their own
            file.write(f"{name}\n")
        time.sleep(0.5)
        return {"parameters": 0, "macs": 1, "storage_bytes": 2}

    monkeypatch.setattr("upstreams.registry.describe", describe)
    runs = tmp_path / "runs"
    file = write_matrix(tmp_path / "m.yaml", upstreams=["fbank", "fbank_no_cmvn"], seeds=[1, 2])
    assert matrix.evaluate(file, corpora, runs) == 0
    assert counted.read_text().splitlines() == ["fbank", "fbank_no_cmvn"]
    for label in ("fbank", "fbank_no_cmvn"):
        for seed in (1, 2):
            found = results(runs, label, seed)
            assert (found["parameters"], found["macs"], found["storage_bytes"]) == (0, 1, 2)
            assert found["seconds"]["evaluate"] < 0.5
