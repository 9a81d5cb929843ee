"""Query-by-example, speaker verification and diarization through `superbit downstream` and a matrix."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.downstream import run as downstream
from runners.matrix import run as matrix
from runners.report.layer_weights import layer_weights
from runners.report.submission import write_submission
from runners.report.table import collect
from runners.report.text import as_markdown
from runners.tasks import TASKS
from tests.runners.downstream.experiments import few_steps, logged, train
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder


@pytest.mark.parametrize("task", ["asv", "sd"])
def test_train_and_evaluate(task: str, more_tiny_corpora: Path, tmp_path: Path) -> None:
    train(task, more_tiny_corpora, tmp_path)
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "states-4.ckpt"), "--device", "cpu"])
    assert metrics is not None and 0 <= metrics[TASKS[task].metric] <= 1
    if task == "sd":
        assert logged(tmp_path)["dev-der"][-1][0] == 4
        assert (tmp_path / TASKS[task].best).exists()
        assert len(list((tmp_path / "scoring/predictions").glob("*.h5"))) == 2
    else:
        truth = [
            int(line.split()[0]) for line in (more_tiny_corpora / "VoxCeleb1/veri_test.txt").read_text().splitlines()
        ]
        scores = [float(line.split()[1]) for line in (tmp_path / "test_predict.txt").read_text().splitlines()]
        wrong = sum(
            (a <= b) for a, x in zip(scores, truth, strict=True) for b, y in zip(scores, truth, strict=True) if x > y
        )
        assert (metrics["EER"] == 0) is (wrong == 0), "no error if and only if all same-speaker trials score higher"
        assert (more_tiny_corpora / "VoxCeleb1/dev/.wav_lengths").is_dir(), "lengths are cached beside the corpus"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_queries_are_found_without_training(split: str, more_tiny_corpora: Path, tmp_path: Path) -> None:
    arguments = ["-m", "evaluate", "-u", "fbank_no_cmvn", "-l", "0", "-d", "qbe", "-t", split, "-p", str(tmp_path)]
    workers = "config.downstream_expert.datarc.num_workers=0,,config.downstream_expert.max_workers=1"
    metrics = downstream.main([*arguments, "--corpora", str(more_tiny_corpora), "--device", "cpu", "-o", workers])
    assert metrics == {"mtwv": pytest.approx(1.0)}, (
        "each melody is found in the utterances that contain it, and in no other"
    )
    with pytest.raises(UserError, match="qbe trains nothing: use -m evaluate"):
        downstream.main(["-m", "train", *arguments[2:], "--corpora", str(more_tiny_corpora)])


def test_a_matrix_of_these_tasks(more_tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query-by-example tests the best layer on dev, verification its last checkpoint; done cells do not run again."""
    checkpoint.save(tmp_path / "mini.safetensors", AudioEncoder(preset("transformer_mini")), None, {})
    tasks: dict[str, Any] = {task: few_steps(task, steps=2) for task in ("asv", "sd")}
    tasks["qbe"] = {"downstream_expert.datarc.num_workers": 0, "downstream_expert.max_workers": 1}
    mini = {"label": "mini", "name": "superbit_local", "ckpt": str(tmp_path / "mini.safetensors")}
    content: dict[str, Any] = {"upstreams": [mini, "fbank_no_cmvn"], "tasks": tasks, "seeds": [1], "device": "cpu"}
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    cells = {"qbe": "mini/qbe", "asv": "fbank_no_cmvn/asv", "sd": "fbank_no_cmvn/sd"}
    assert matrix.evaluate(file, more_tiny_corpora, runs, only=[*cells.values()]) == 0
    found = {task: json.loads((runs / f"cells/{cell}/seed1/results.json").read_text()) for task, cell in cells.items()}
    qbe = found["qbe"]
    layers = qbe["layers_percent"]
    assert len(layers) == preset("transformer_mini").encoder.layers + 1
    assert qbe["layer"] == layers.index(max(layers)) and qbe["dev_percent"] == max(layers)
    assert (found["asv"]["tested"], found["asv"]["metric"]) == ("states-2.ckpt", "EER")
    assert found["sd"]["tested"] in ("best-states-dev.ckpt", "states-2.ckpt")
    for of in found.values():
        again = downstream.main(shlex.split(of["command"])[2:])
        assert again is not None and again[of["metric"]] == of["s3prl_metrics"][of["metric"]]
    assert len(collect([runs]).results) == 3 and as_markdown(collect([runs]), [runs])

    assert layer_weights(collect([runs]), "mini") == {}, "query-by-example learns no layer weights"
    write_submission(runs, "mini", tmp_path / "mini", None, print)
    assert (tmp_path / "mini/predict/qbe_public/benchmark.stdlist.xml").is_file()
    write_submission(runs, "fbank_no_cmvn", tmp_path / "fbank", None, print)
    names = {
        path.relative_to(tmp_path / "fbank/predict").as_posix() for path in (tmp_path / "fbank/predict").rglob("*.*")
    }
    assert {"sv_public/predict.txt", "sd_public/scoring/predictions/test0.h5"} <= names
    assert (tmp_path / "fbank/predict/sd_public/frame_shift").read_text() == "160\n"

    monkeypatch.setattr("runners.downstream.run.main", None)
    assert matrix.evaluate(file, more_tiny_corpora, runs, only=[*cells.values()]) == 0, "nothing is left to run"
    file.write_text(yaml.safe_dump(content | {"learning_rates": {"asv": [0.1, 0.2]}}))
    with pytest.raises(UserError, match="'asv', which has no dev set to choose one on"):
        matrix.evaluate(file, more_tiny_corpora, runs)
