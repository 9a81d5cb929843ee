"""Running a matrix: each training once, failures reported, options passed on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from runners.matrix import run as matrix
from runners.matrix.run import Options
from tests.runners.matrix.fakes import FakeDownstream, results, write_matrix
from upstreams.errors import UserError


def test_a_real_cell_is_trained_tested_and_reproduced_by_its_command(corpora: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml"), corpora, runs) == 0
    found = results(runs, "fbank_no_cmvn")
    assert found["metric"] == "acc"
    assert 0 <= found["value_percent"] <= 100
    assert 100 * found["s3prl_metrics"]["acc"] == pytest.approx(found["value_percent"])
    assert found["best_on_dev"] is (found["tested"] == "dev-best.ckpt")
    assert found["parameters"] == 0
    assert found["macs"] > 0
    assert found["corpus"] == {"speech": "real", "label": "not as published"}
    assert found["seconds"]["train"] > 0
    assert {"superbit", "s3prl", "torch", "torchaudio", "python", "commit"} <= set(found["versions"])

    line = shlex.split(found["command"])
    assert line[:2] == ["superbit", "downstream"]
    from runners.downstream import run as downstream

    again = downstream.main(line[2:])
    assert again is not None
    assert again["acc"] == found["s3prl_metrics"]["acc"]


def test_a_cell_runs_again_only_if_something_changed(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, upstreams=["fbank", "fbank_no_cmvn"], seeds=[1, 2])
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    calls = fake.calls_made()
    assert len(calls) == 2 * 4
    assert all(call["store"] is (call["-m"] == "train") for call in calls), "only training may use the store"
    assert {call.get("--seed") for call in calls if call["-m"] == "train"} == {"1", "2"}

    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    assert len(fake.calls_made()) == 8

    # One changed value makes all results stale: they move aside before the first training starts.
    changed = yaml.safe_load(file.read_text())["tasks"]
    changed["ks"]["optimizer.lr"] = 0.5
    write_matrix(file, upstreams=["fbank", "fbank_no_cmvn"], tasks=changed)
    fake.behaviour["fbank"] = "raise"
    assert matrix.evaluate(file, corpora, runs) == 1
    assert not (runs / "cells/fbank/ks/seed1/results.json").exists()
    assert results(runs, "fbank_no_cmvn")["identity"]["config"]["optimizer"]["lr"] == 0.5

    # Other corpora make the results stale as well.
    (corpora / "corpus.json").write_text(json.dumps({"tasks": {"ks": {"speech": "synthetic", "label": "as spoken"}}}))
    try:
        before = len(fake.calls_made())
        assert matrix.evaluate(file, corpora, runs, only=["fbank_no_cmvn/ks"]) == 0
        assert len(fake.calls_made()) == before + 2
        assert results(runs, "fbank_no_cmvn")["corpus"]["speech"] == "synthetic"
    finally:
        (corpora / "corpus.json").unlink()


def test_a_training_that_fails_is_reported_and_the_others_continue(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.behaviour = {"fbank": "raise", "mfcc": "nan", "mel": "exit", "linear": "killed"}
    file = write_matrix(tmp_path / "m.yaml", upstreams=["fbank", "mfcc", "mel", "linear", "fbank_no_cmvn"])
    runs = tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "RuntimeError: the head exploded" in printed
    assert "acc = nan" in printed
    assert "signal 9 ended the process" in printed
    assert "4 of 5 stages failed; run the same command again" in printed
    assert "Traceback" in (runs / "cells/fbank/ks/seed1/log.txt").read_text()
    written = sorted(path.parts[-4] for path in runs.glob("cells/*/*/*/results.json"))
    assert written == ["fbank_no_cmvn"]

    # The killed training resumes from its checkpoint. The failed ones are retried.
    fake.behaviour = {}
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    assert results(runs, "linear")["resumed_at_step"] == 2
    assert results(runs, "fbank_no_cmvn")["resumed_at_step"] is None


def test_only_the_chosen_cells_need_their_checkpoints(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERBIT_CHECKPOINTS", str(tmp_path))
    file = write_matrix(tmp_path / "m.yaml", upstreams=["fbank", "sparseformer_dn_mini"])
    assert matrix.evaluate(file, corpora, tmp_path / "runs", only=["fbank/*"]) == 0
    assert results(tmp_path / "runs", "fbank")["value_percent"] == 50
    with pytest.raises(UserError, match=r"no checkpoint for sparseformer_dn_mini"):
        matrix.evaluate(file, corpora, tmp_path / "runs")


def test_the_feature_store_can_be_off_or_elsewhere(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file = write_matrix(tmp_path / "m.yaml")
    assert matrix.evaluate(file, corpora, tmp_path / "a", options=Options(store=False)) == 0
    assert [call["store"] for call in fake.calls_made()] == [False, False]
    options = Options(store_folder=tmp_path / "elsewhere", store_gb=1.5)
    assert matrix.evaluate(file, corpora, tmp_path / "b", options=options) == 0
    training = fake.calls_made()[2]
    assert training["--feature-store"] == str(tmp_path / "elsewhere")
    assert training["--feature-store-gb"] == "1.5"


@pytest.mark.parametrize("name", ["states-2.ckpt", "dev-best.ckpt"])
def test_a_killed_training_whose_checkpoint_is_damaged_starts_from_scratch(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, name: str
) -> None:
    fake.behaviour = {"fbank": "killed"}
    file, runs = write_matrix(tmp_path / "m.yaml", upstreams=["fbank"]), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 1
    path = runs / "cells/fbank/ks/seed1/expdir" / name
    whole = path.read_bytes() if path.exists() else (path.parent / "states-2.ckpt").read_bytes()
    path.write_bytes(whole[:-100])
    fake.behaviour = {}
    assert matrix.evaluate(file, corpora, runs) == 0
    found = results(runs, "fbank")
    assert found["resumed_at_step"] is None and found["tested"] == "dev-best.ckpt"
    log = (runs / "cells/fbank/ks/seed1/log.txt").read_text()
    assert f"the checkpoint {path} is damaged" in log and "fbank/ks seed 1 starts from scratch" in log
