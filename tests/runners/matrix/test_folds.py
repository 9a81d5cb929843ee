"""The five folds of ER: a cell's number is the mean over its folds, also after interruptions between them."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from runners.downstream import run as downstream
from runners.matrix import file as matrix_file
from runners.matrix import run as matrix
from runners.matrix.identity import origin
from runners.report.submission import write_submission
from runners.report.table import collect
from runners.report.text import as_markdown
from runners.tasks import FOLD, FOLDS, task_config
from tests.runners.corpora import published_corpora
from tests.runners.corpora.test_published import superbit
from tests.tiny_corpora import Sounds
from upstreams.errors import UserError

FEW = {
    **{"runner.total_steps": 2, "runner.eval_step": 2, "runner.save_step": 2, "runner.log_step": 2},
    **{"runner.gradient_accumulate_steps": 1, "runner.eval_dataloaders": ["dev"]},
    "downstream_expert.datarc.num_workers": 0,
}
ACCURACY = {"fold1": 0.5, "fold2": 0.7, "fold3": 0.6, "fold4": 0.4, "fold5": 0.8}


class FoldsDownstream:
    """Stands in for s3prl. Each fold has its own accuracy; folds in `failing` fail."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.failing: set[str] = set()

    def main(self, argv: list[str], on_step: Any = None) -> dict[str, float] | None:
        options = dict(zip(argv[::2], argv[1::2], strict=True))
        if options["-m"] == "evaluate":
            return {"acc": ACCURACY[torch.load(options["-e"])["fold"]]}
        fold = yaml.safe_load(Path(options["-c"]).read_text())["downstream_expert"]["datarc"]["test_fold"]
        with self.calls.open("a") as file:
            file.write(f"{fold}\n")
        if fold in self.failing:
            raise RuntimeError("the head exploded")
        state = {"Downstream": {"best_score": torch.tensor([ACCURACY[fold] / 2])}, "fold": fold}
        for name in ("states-2.ckpt", "dev-best.ckpt"):
            torch.save(state, Path(options["-p"], name))
        Path(options["-p"], f"test_{fold}_predict.txt").write_text(fold)
        return None

    def trained(self) -> list[str]:
        return sorted(self.calls.read_text().split())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FoldsDownstream:
    fake = FoldsDownstream(tmp_path)
    monkeypatch.setattr("runners.downstream.run.main", fake.main)
    return fake


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("iemocap")
    published_corpora.iemocap(root / "IEMOCAP", Sounds(3))
    assert superbit("prepare", "er", root).exit_code == 0
    return root


def write_matrix(path: Path, rates: list[float] | None = None, **changes: Any) -> Path:
    content: dict[str, Any] = {"upstreams": ["fbank_no_cmvn"], "tasks": {"er": FEW | changes}, "seeds": [1]}
    content |= {"device": "cpu", "feature_store_gb": 0, "learning_rates": {"er": rates} if rates else {}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def mean(runs: Path) -> Path:
    return runs / "cells/fbank_no_cmvn/er/seed1/results.json"


def test_five_folds_give_mean_and_deviation(iemocap: Path, tmp_path: Path, fake: FoldsDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, iemocap, runs, jobs=2) == 0
    assert fake.trained() == list(FOLDS)
    found = json.loads(mean(runs).read_text())
    assert found["value_percent"] == 100 * found["s3prl_metrics"]["acc"] == pytest.approx(60)
    in_percent = {fold: pytest.approx(100 * accuracy) for fold, accuracy in ACCURACY.items()}
    assert found["fold_deviation_percent"] == pytest.approx(100 * statistics.stdev(ACCURACY.values()))
    assert {fold: of["value_percent"] for fold, of in found["folds"].items()} == in_percent
    for fold, of in found["folds"].items():
        assert f"/seed1/{fold}/expdir/" in of["command"] and of["command"] in found["command"]
        assert json.loads((mean(runs).parent / fold / "results.json").read_text())["value_percent"] == in_percent[fold]
    table = collect([runs])
    assert [result["value_percent"] for result in table.results] == [pytest.approx(60)], (
        "one row, not one for each fold"
    )
    assert "er is the mean over folds. Standard deviations over the folds: fbank_no_cmvn 15.81 (5 folds, seed 1)" in (
        as_markdown(table, [runs])
    )
    printed: list[str] = []
    write_submission(runs, "fbank_no_cmvn", tmp_path / "out", None, printed.append)
    for fold in FOLDS:
        assert (tmp_path / f"out/predict/er_{fold}_public/predict.txt").read_text() == fold
    assert not any("of 5 folds" in line for line in printed)

    # Stopped between the last fold and the mean, it writes the mean and trains nothing.
    mean(runs).unlink()
    assert matrix.evaluate(file, iemocap, runs, jobs=2) == 0
    assert len(fake.trained()) == 5 and json.loads(mean(runs).read_text()) == found


def test_no_mean_without_every_fold(iemocap: Path, tmp_path: Path, fake: FoldsDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    fake.failing = {"fold4"}
    assert matrix.evaluate(file, iemocap, runs) == 1
    assert not mean(runs).exists() and fake.trained() == list(FOLDS)
    fake.failing = set()
    assert matrix.evaluate(file, iemocap, runs) == 0
    assert fake.trained() == sorted([*FOLDS, "fold4"]), "finished folds are kept"
    assert mean(runs).exists()

    # With another configuration the mean is stale: it moves aside before the first fold ends.
    fake.failing = {"fold1"}
    assert matrix.evaluate(write_matrix(file, **{"optimizer.lr": 0.5}), iemocap, runs) == 1
    assert not mean(runs).exists()


def test_a_mean_never_mixes_folds_of_different_code(iemocap: Path, tmp_path: Path, fake: FoldsDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml", **{FOLD: ["fold1", "fold2"]}), tmp_path / "runs"
    assert matrix.evaluate(file, iemocap, runs) == 0

    def as_if_by_other_code(*folds: str) -> None:
        for fold in folds:
            path = mean(runs).parent / fold / "results.json"
            content = json.loads(path.read_text())
            content["identity"]["code"]["heads"] = "0"
            path.write_text(json.dumps(content))

    as_if_by_other_code("fold1", "fold2")
    assert matrix.evaluate(file, iemocap, runs) == 0
    assert fake.trained() == ["fold1", "fold2"], "both stay: they are of one code"
    assert json.loads(mean(runs).read_text())["identity"]["code"]["heads"] == "0"
    (mean(runs).parent / "fold2" / "results.json").unlink()
    shutil.rmtree(mean(runs).parent / "fold2" / "expdir")
    assert matrix.evaluate(file, iemocap, runs) == 0
    assert json.loads(mean(runs).read_text())["identity"]["code"] == origin()["code"]
    assert len(list((mean(runs).parent / "fold1").glob("stale-*/results.json"))) == 1


def test_learning_rates_are_chosen_within_each_fold(iemocap: Path, tmp_path: Path, fake: FoldsDownstream) -> None:
    rates = [0.1, 0.2]
    file, runs = write_matrix(tmp_path / "m.yaml", rates, **{FOLD: ["fold1", "fold2"]}), tmp_path / "runs"
    assert matrix.evaluate(file, iemocap, runs) == 0
    assert fake.trained() == ["fold1", "fold1", "fold2", "fold2"]
    found = json.loads(mean(runs).read_text())
    assert (found["value_percent"], found["dev_percent"], found["learning_rate"]) == (
        pytest.approx(60),
        pytest.approx(30),
        0.1,
    )
    assert [[of["learning_rate"] for of in fold["learning_rates"]] for fold in found["folds"].values()] == [rates] * 2
    assert matrix.evaluate(file, iemocap, runs) == 0 and len(fake.trained()) == 4


def test_a_matrix_may_restrict_the_folds(iemocap: Path, tmp_path: Path, fake: FoldsDownstream) -> None:
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml", **{FOLD: "fold3"}), iemocap, runs) == 0
    found = json.loads(mean(runs).read_text())
    assert "er: one fold only; SUPERB" in as_markdown(collect([runs]), [runs])
    assert found["value_percent"] == 60 and "folds" not in found and not (mean(runs).parent / "fold3").exists()
    both = write_matrix(tmp_path / "m.yaml", **{FOLD: ["fold1", "fold2"]})
    assert matrix.evaluate(both, iemocap, runs) == 0
    assert json.loads(mean(runs).read_text())["value_percent"] == pytest.approx(60)
    assert fake.trained() == ["fold1", "fold2", "fold3"]
    for wrong in ("fold6", [], 1, ["fold1", "flod2"]):
        with pytest.raises(UserError, match="must be one or a list of fold1, "):
            matrix.evaluate(write_matrix(tmp_path / "m.yaml", **{FOLD: wrong}), iemocap, runs)


def test_real_folds_test_their_own_sessions(iemocap: Path, tmp_path: Path) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml", **{FOLD: ["fold2", "fold5"]}), tmp_path / "runs"
    assert matrix.evaluate(file, iemocap, runs) == 0
    folds = json.loads(mean(runs).read_text())["folds"]
    for fold, of in folds.items():
        again = downstream.main(shlex.split(of["command"])[2:])
        assert again is not None and 100 * again["acc"] == pytest.approx(of["value_percent"])
        truth = (mean(runs).parent / fold / "expdir" / f"test_{fold}_truth.txt").read_text()
        assert len(truth.splitlines()) == 10 and f"Ses0{fold[-1]}" in truth


def test_the_mini_matrix_has_one_fold_and_the_full_one_five() -> None:
    assert matrix_file.read_matrix("superb_mini").tasks["er"][FOLD] == "fold1"
    assert FOLD not in matrix_file.read_matrix("paper").tasks["er"]
    assert task_config("er", "/c")["downstream_expert"]["datarc"]["test_fold"] == "fold1"
