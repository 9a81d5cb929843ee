"""Planning a matrix: bad input is refused before anything runs; a dry run only prints the plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from runners.matrix import run as matrix
from runners.matrix.run import Options
from tests.runners.matrix.fakes import FakeDownstream, write_matrix
from upstreams.errors import UserError


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, upstreams=["fbank_no_cmvn", "mfcc"], learning_rates={"ks": [1.0e-1, 1.0e-2]})
    dry_run = Options(dry_run=True)
    assert matrix.evaluate(file, corpora, runs, jobs=2, options=dry_run) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "fbank_no_cmvn/ks seed 1 lr 0.1" in printed
    assert "4 of 4 trainings to run, 2 cells" in printed
    assert "plus 2 of unknown time" in printed  # s3prl's mfcc
    assert not runs.exists()
    assert not fake.calls_made()

    assert matrix.evaluate(file, corpora, runs, jobs=2, only=["fbank_no_cmvn/ks"]) == 0
    capsys.readouterr()
    assert matrix.evaluate(file, corpora, runs, seeds=[1, 2], jobs=2, options=dry_run) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "6 of 8 trainings to run, 4 cells" in printed
    # Trainings of another seed are estimated from the measured ones.
    assert (
        len(re.findall(r"fbank_no_cmvn/ks seed 2 lr [\d.]+ new 4 \d+ s - [\d.]+ [MG]B \d+ MB measured", printed)) == 2
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upstreams": ["fbank", "sparsformer_dn_mini"]}, "no upstream 'sparsformer_dn_mini'.*sparseformer_dn_mini"),
        ({"upstreams": [{"name": "fbank", "cpkt": "x"}]}, "unknown key 'cpkt'; did you mean 'ckpt'"),
        ({"upstreams": [{"name": "fbank", "ckpt": "none.safetensors"}]}, "none.safetensors.*does not exist"),
        ({"upstreams": ["fbank", "fbank"]}, "two upstreams have the label 'fbank'"),
        ({"upstreams": [{"name": "fbank", "label": "../x"}]}, "cannot name a folder"),
        ({"upstreams": []}, "upstreams must be a list"),
        ({"tasks": {"kss": {}}}, "no task 'kss'; did you mean 'ks'"),
        ({"tasks": {"ks": {"runner.totl_steps": 3}}}, "runner.total_steps"),
        ({"tasks": {"ks": 3}}, "must map dotted keys"),
        ({"tasks": {"ks": {"optimizer.lr": "1e-4"}}}, r"m\.yaml: tasks\.ks: optimizer\.lr must be .* write 1\.0e-4\)"),
        ({"tasks": {"ks": {"runner.log_step": 0}}}, r"ks: runner\.log_step must be .* not 0 \(in matrix .*m\.yaml\)"),
        ({"tasks": {"ks": {}, "asr": {}}}, "LibriSpeech"),
        ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"seeds": ["one"]}, "seeds must be whole numbers"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"feature_store_gb": -1}, "feature_store_gb must be a number"),
        ({"feature_store_dtype": "fp8"}, "no feature_store_dtype 'fp8'; did you mean"),
        ({"learning_rates": {"er": [1.0e-3]}}, "names 'er', which is not one of its tasks"),
        ({"learning_rates": {"ks": []}}, "learning_rates.ks must be a list"),
        ({"learning_rates": {"ks": ["1e-3"]}}, "must be numbers above 0 such as 1.0e-3"),
        ({"learning_rates": {"ks": [0.1, 0.10]}}, "names a learning rate twice"),
        ({"slurm": "gpu"}, "slurm must map settings"),
    ],
)
def test_a_bad_matrix_is_refused_before_anything_runs(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        matrix.evaluate(write_matrix(tmp_path / "m.yaml", **changes), corpora, tmp_path / "runs")
    assert not fake.calls_made()
    assert not (tmp_path / "runs").exists()


def test_other_bad_input_is_refused_before_anything_runs(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    with pytest.raises(UserError, match="no matrix or file is called"):
        matrix.evaluate(tmp_path / "none.yaml", corpora, runs)
    with pytest.raises(UserError, match="no corpora folder"):
        matrix.evaluate(file, tmp_path / "nowhere", runs)
    with pytest.raises(UserError, match="did you mean 'fbank_no_cmvn/ks'"):
        matrix.evaluate(file, corpora, runs, only=["fbank_no_cmvm/ks"])
    with pytest.raises(UserError, match="jobs must be 1 or more"):
        matrix.evaluate(file, corpora, runs, jobs=0)
    (tmp_path / "no.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"no\.yaml is not valid YAML"):
        matrix.evaluate(tmp_path / "no.yaml", corpora, runs)
    assert not fake.calls_made()
