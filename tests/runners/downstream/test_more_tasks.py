"""SUPERB's other three tasks: query-by-example, speaker verification, diarization; and their scores."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runners.corpora.check import check_corpus
from runners.downstream import run as downstream
from runners.downstream.scoring import detection, diarization
from runners.matrix import run as matrix
from runners.report.layer_weights import layer_weights
from runners.report.submission import write_submission
from runners.report.table import collect
from runners.report.text import as_markdown
from runners.tasks import TASKS
from tests import tiny_more_corpora
from tests.runners.corpora.test_published import refused, superbit
from tests.runners.downstream.test_run import logged
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder

SMALL: dict[str, dict[str, Any]] = {
    "asv": {
        **{"datarc.num_workers": 0, "datarc.train_batch_size": 2, "datarc.vad_config.min_sec": 4000},
        **{"modelrc.input_dim": 16, "modelrc.module_config.XVector.agg_dim": 24},
    },
    "sd": {"loaderrc.num_workers": 0, "loaderrc.train_batchsize": 2, "modelrc.hidden_size": 8},
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_more_corpora.build(tmp_path_factory.mktemp("more"))


def train(task: str, corpora: Path, expdir: Path) -> None:
    runner = {"total_steps": 4, "eval_step": 2, "save_step": 2, "log_step": 2, "gradient_accumulate_steps": 1}
    changes = [f"config.runner.{key}={value}" for key, value in runner.items()]
    changes += [f"config.downstream_expert.{key}={value}" for key, value in SMALL[task].items()]
    arguments = ["-m", "train", "-u", "fbank_no_cmvn", "-d", task, "-p", str(expdir), "--corpora", str(corpora)]
    downstream.main([*arguments, "--device", "cpu", "-o", ",,".join(changes)])


@pytest.mark.parametrize("task", ["asv", "sd"])
def test_train_and_evaluate(task: str, corpora: Path, tmp_path: Path) -> None:
    train(task, corpora, tmp_path)
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "states-4.ckpt"), "--device", "cpu"])
    assert metrics is not None and 0 <= metrics[TASKS[task].metric] <= 1
    if task == "sd":
        assert logged(tmp_path)["dev-der"][-1][0] == 4
        assert (tmp_path / TASKS[task].best).exists()
        assert len(list((tmp_path / "scoring/predictions").glob("*.h5"))) == 2
    else:
        truth = [int(line.split()[0]) for line in (corpora / "VoxCeleb1/veri_test.txt").read_text().splitlines()]
        scores = [float(line.split()[1]) for line in (tmp_path / "test_predict.txt").read_text().splitlines()]
        wrong = sum(
            (a <= b) for a, x in zip(scores, truth, strict=True) for b, y in zip(scores, truth, strict=True) if x > y
        )
        assert (metrics["EER"] == 0) is (wrong == 0), "no error exactly where all same-speaker trials score higher"
        assert (corpora / "VoxCeleb1/dev/.wav_lengths").is_dir(), "lengths are kept beside the corpus"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_queries_are_found_without_training(split: str, corpora: Path, tmp_path: Path) -> None:
    arguments = ["-m", "evaluate", "-u", "fbank_no_cmvn", "-l", "0", "-d", "qbe", "-t", split, "-p", str(tmp_path)]
    workers = "config.downstream_expert.datarc.num_workers=0,,config.downstream_expert.max_workers=1"
    metrics = downstream.main([*arguments, "--corpora", str(corpora), "--device", "cpu", "-o", workers])
    assert metrics == {"mtwv": pytest.approx(1.0)}, "each melody is in the utterances that hold it, and in no other"
    with pytest.raises(UserError, match="qbe trains nothing: say -m evaluate"):
        downstream.main(["-m", "train", *arguments[2:], "--corpora", str(corpora)])


def test_the_term_weighted_value_by_hand() -> None:
    # Two queries in four utterances; the second threshold from above is best: one miss of query b, no false alarm.
    scores = {
        "a": {"1": 0.9, "2": 0.8, "3": 0.1, "4": 0.2},
        "b": {"1": 0.3, "2": 0.85, "3": 0.4, "4": 0.1},
        "nowhere": {"1": 5.0, "2": 5.0, "3": 5.0, "4": 5.0},
    }
    truth = {"a": {"1", "2"}, "b": {"2", "4"}}
    assert detection.mtwv(scores, truth) == pytest.approx(1 - (0 + 1 / 2) / 2)
    # At 0.3 and below a false alarm costs beta / 2 of a query's two utterances without it: never worth it.
    assert pytest.approx(12.49) == detection.BETA
    assert detection.mtwv({"a": {"1": 0.1, "2": 0.9}}, {"a": {"1"}}) == 0, "detecting nothing is best"
    # What has one score is detected together.
    assert detection.mtwv({"a": {"1": 0.5, "2": 0.5}}, {"a": {"1"}}) == 0
    assert detection.mtwv({"a": {"1": 0.5}}, {"a": {"1"}}) == 1
    with pytest.raises(UserError, match="none of the queries occurs"):
        detection.mtwv(scores, {"c": {"1"}})


def test_the_diarization_error_rate_by_hand() -> None:
    reference = {"A": [(0.0, 2.0)], "B": [(1.0, 3.0)]}
    cases: list[tuple[diarization.Segments, float]] = [
        ({"x": [(1.0, 3.0)], "y": [(0.0, 2.0)]}, 0.0),  # names do not matter
        ({"x": [(0.0, 1.0)], "y": [(1.0, 3.0)]}, 1.0),  # A is missed where both speak
        ({"x": [(0.0, 3.0)]}, 2.0),  # a second missed of overlap, one of confusion
        ({"x": [(0.0, 2.0)], "y": [(1.0, 3.5)]}, 0.5),  # half a second of false alarm
        ({"x": [(0.0, 2.0), (0.5, 1.0)], "y": [(1.0, 3.0)]}, 0.0),  # one speaker's segments may overlap
        ({}, 4.0),
    ]
    for hypothesis, seconds in cases:
        assert diarization.errors(reference, hypothesis) == pytest.approx((seconds, 4.0)), hypothesis
    assert diarization.errors({}, {"x": [(0.0, 1.0)]}) == (1.0, 0.0)


def test_frames_become_segments() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.6], [0.2, 0.9], [0.9, 0.9], [0.9, 0.9]])
    assert diarization.segments(probabilities, 0.5, 1, 0.02) == {
        "0": [pytest.approx((0.0, 0.04)), pytest.approx((0.06, 0.1))],
        "1": [pytest.approx((0.02, 0.1))],
    }
    assert len(diarization.segments(probabilities, 0.5, 3, 0.02)["0"]) == 1, "the filter closes the gap of a frame"
    assert diarization.segments(probabilities, 0.95, 1, 0.02) == {"0": [], "1": []}


def test_the_lowest_of_the_thresholds_counts(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "rttm").write_text(
        "SPEAKER one 1 0.00 0.50 <NA> <NA> a <NA>\nSPEAKER one 1 0.50 0.50 <NA> <NA> b <NA>\n"
    )
    certain = np.repeat([[0.65, 0.35], [0.35, 0.65]], 50, axis=0)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["T_hat"] = certain
    assert diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01) == pytest.approx(0)
    (tmp_path / "rttm").write_text("SPEAKER two 1 0.00 0.50 <NA> <NA> a <NA>\n")
    assert diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01) == 1, "a recording without prediction is missed"
    (tmp_path / "rttm").write_text("SPEAKER two 1 zero 0.50 <NA> <NA> a <NA>\n")
    with pytest.raises(UserError, match="rttm, line 1: expected"):
        diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01)
    (tmp_path / "rttm").write_text("")
    with pytest.raises(UserError, match="nobody speaks"):
        diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01)


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / name).write_text(change((root / name).read_text()))

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


QUESST, TRIALS, SD = "quesst14Database", "VoxCeleb1/veri_test.txt", "Libri2Mix_diarization"


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        ("qbe", _remove(f"{QUESST}/Audio/quesst14_00003.wav"), r"quesst14_00003\.wav is missing"),
        ("qbe", _remove(f"{QUESST}/scoring/language_key_eval.lst"), r"language_key_eval\.lst is missing"),
        ("qbe", _edit(f"{QUESST}/scoring/language_key_dev.lst", lambda text: "x\n" + text), "line 1: expected"),
        ("qbe", _edit(f"{QUESST}/scoring/language_key_dev.lst", lambda text: ""), "names no file of the language"),
        ("qbe", _remove(f"{QUESST}/scoring/groundtruth_quesst14_eval"), "groundtruth_quesst14_eval is missing"),
        ("qbe", _remove(f"{QUESST}/scoring/groundtruth_quesst14_dev/quesst14_dev.rttm"), r"holds no \.rttm"),
        ("asv", _remove("VoxCeleb1/test/wav/id10270/video0/00001.wav"), r"video0/00001\.wav is missing"),
        ("asv", _remove("VoxCeleb1/dev/wav/id10001"), "fewer than two speakers"),
        ("asv", _remove(TRIALS), r"veri_test\.txt is missing"),
        ("asv", _edit(TRIALS, lambda text: text.replace("0 id", "1 id")), "trials of the same speaker"),
        ("asv", _edit(TRIALS, lambda text: "2" + text), "line 1: expected"),
        ("sd", _remove(f"{SD}/wav/dev1.wav"), r"dev1\.wav is missing"),
        ("sd", _remove(f"{SD}/test/rttm"), "rttm is missing"),
        ("sd", _edit(f"{SD}/train/wav.scp", lambda text: "train0 rm -r / |\n"), "wav.scp, line 1: expected"),
        ("sd", _edit(f"{SD}/dev/wav.scp", lambda text: ""), "lists no recording"),
        ("sd", _edit(f"{SD}/dev/reco2dur", lambda text: text[:8]), "no line for the recording dev1"),
        ("sd", _edit(f"{SD}/test/rttm", lambda text: text.replace("test1", "test2")), "the recording test1"),
    ],
)
def test_a_damaged_corpus(task: str, damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    root = tiny_more_corpora.build(tmp_path / "corpora")
    check_corpus(task, root)
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        check_corpus(task, root)
    assert f"The layout expected for {task}: " in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_package_is_named(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"qbe needs the package dtw: `pip install superbit\[superb\]`"):
        check_corpus("qbe", corpora)


@pytest.mark.parametrize("task", ["qbe", "asv", "sd"])
def test_the_command_checks_and_counts(task: str, corpora: Path) -> None:
    done = superbit("check", task, corpora, "--any-size")
    assert done.exit_code == 0 and f"{task}: every file is there" in done.stdout
    assert "are published" in refused(superbit("check", task, corpora))
    assert "nothing to make" in superbit("prepare", task, corpora).stdout


def test_a_matrix_of_them(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query-by-example tests the layer that is best on dev; verification its last states; each runs once."""
    checkpoint.save(tmp_path / "mini.safetensors", AudioEncoder(preset("transformer_mini")), None, {})
    few = {"total_steps": 2, "eval_step": 2, "save_step": 2, "log_step": 2, "gradient_accumulate_steps": 1}
    tasks: dict[str, Any] = {
        task: {f"runner.{key}": value for key, value in few.items()}
        | {f"downstream_expert.{key}": value for key, value in SMALL[task].items()}
        for task in ("asv", "sd")
    }
    tasks["qbe"] = {"downstream_expert.datarc.num_workers": 0, "downstream_expert.max_workers": 1}
    mini = {"label": "mini", "name": "superbit_local", "ckpt": str(tmp_path / "mini.safetensors")}
    content: dict[str, Any] = {"upstreams": [mini, "fbank_no_cmvn"], "tasks": tasks, "seeds": [1], "device": "cpu"}
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    cells = {"qbe": "mini/qbe", "asv": "fbank_no_cmvn/asv", "sd": "fbank_no_cmvn/sd"}
    assert matrix.evaluate(file, corpora, runs, only=[*cells.values()]) == 0
    found = {task: json.loads((runs / f"cells/{cell}/seed1/results.json").read_text()) for task, cell in cells.items()}
    qbe = found["qbe"]
    assert len(qbe["layers"]) == preset("transformer_mini").encoder.layers + 1
    assert qbe["layer"] == qbe["layers"].index(max(qbe["layers"])) and qbe["dev"] == max(qbe["layers"])
    assert (found["asv"]["tested"], found["asv"]["metric"]) == ("states-2.ckpt", "EER")
    assert found["sd"]["tested"] in ("best-states-dev.ckpt", "states-2.ckpt")
    for of in found.values():
        again = downstream.main(shlex.split(of["command"])[2:])
        assert again is not None and again[of["metric"]] == of["value"]
    assert len(collect([runs]).results) == 3 and as_markdown(collect([runs]), [runs])

    assert layer_weights(collect([runs]), "mini") == {}, "query-by-example learns none"
    write_submission(runs, "mini", tmp_path / "mini", None, print)
    assert (tmp_path / "mini/predict/qbe_public/benchmark.stdlist.xml").is_file()
    write_submission(runs, "fbank_no_cmvn", tmp_path / "fbank", None, print)
    names = {
        path.relative_to(tmp_path / "fbank/predict").as_posix() for path in (tmp_path / "fbank/predict").rglob("*.*")
    }
    assert {"sv_public/predict.txt", "sd_public/scoring/predictions/test0.h5"} <= names
    assert (tmp_path / "fbank/predict/sd_public/frame_shift").read_text() == "160\n"

    monkeypatch.setattr("runners.downstream.run.main", None)
    assert matrix.evaluate(file, corpora, runs, only=[*cells.values()]) == 0, "nothing is left to run"
    file.write_text(yaml.safe_dump(content | {"learning_rates": {"asv": [0.1, 0.2]}}))
    with pytest.raises(UserError, match="'asv', which has no dev set to choose one on"):
        matrix.evaluate(file, corpora, runs)
