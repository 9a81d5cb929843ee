"""One training: resumed or started from scratch, the best learning rate tested, stale files ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runners.matrix import run as matrix
from tests.runners.matrix.fakes import FakeDownstream, results, write_matrix


def test_learning_rates_are_chosen_on_dev_and_only_the_chosen_one_is_tested(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, learning_rates={"ks": [1.0e-1, 1.0e-2, 1.0e-4]})
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    found = results(runs, "fbank_no_cmvn")
    assert found["learning_rate"] == 0.01
    assert found["dev_percent"] == pytest.approx(100)
    assert [tried["learning_rate"] for tried in found["learning_rates"]] == [0.1, 0.01, 0.0001]
    assert [round(tried["dev_percent"]) for tried in found["learning_rates"]] == [90, 100, 80]
    assert "/lr0.01/expdir/dev-best.ckpt" in found["command"]
    calls = fake.calls_made()
    assert [call["-m"] for call in calls].count("train") == 3
    assert [call["-m"] for call in calls].count("evaluate") == 1, "only the chosen head may see the test set"
    assert "learning rate 0.01 chosen on dev" in capsys.readouterr().out

    # With one more learning rate, the finished trainings are kept and the choice is repeated.
    write_matrix(file, learning_rates={"ks": [1.0e-1, 1.0e-2, 1.0e-3, 1.0e-4]})
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    again = fake.calls_made()[4:]
    assert [call["-m"] for call in again] == ["train", "evaluate"]
    assert len(results(runs, "fbank_no_cmvn")["learning_rates"]) == 4

    # Killed between the last training and the test, only the test is left to run.
    (runs / "cells/fbank_no_cmvn/ks/seed1/results.json").unlink()
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    assert [call["-m"] for call in fake.calls_made()[6:]] == ["evaluate"]


def test_a_stale_checkpoint_is_not_resumed(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    fake.behaviour = {"fbank": "killed"}
    file, runs = write_matrix(tmp_path / "m.yaml", upstreams=["fbank"]), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 1
    tasks = yaml.safe_load(file.read_text())["tasks"]
    tasks["ks"]["runner.total_steps"] = 6
    fake.behaviour = {}
    assert matrix.evaluate(write_matrix(file, upstreams=["fbank"], tasks=tasks), corpora, runs) == 0
    assert results(runs, "fbank")["resumed_at_step"] is None
    config = yaml.safe_load((runs / "cells/fbank/ks/seed1/config.yaml").read_text())
    assert config["runner"]["total_steps"] == 6


def test_the_last_checkpoint_is_tested_if_the_dev_score_never_improved(
    corpora: Path, tmp_path: Path, fake: FakeDownstream
) -> None:
    fake.behaviour = {"fbank": "no best"}
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml", upstreams=["fbank"]), corpora, runs) == 0
    found = results(runs, "fbank")
    assert (found["tested"], found["best_on_dev"]) == ("states-2.ckpt", False)


def test_damaged_results_are_replaced(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    path = runs / "cells/fbank_no_cmvn/ks/seed1/results.json"
    path.write_text(path.read_text()[:100])
    assert matrix.evaluate(file, corpora, runs) == 0
    assert results(runs, "fbank_no_cmvn")["value_percent"] == 50
