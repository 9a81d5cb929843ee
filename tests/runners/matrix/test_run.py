"""The batch runner: what it checks before it starts, what it keeps, what it does about cells that end badly."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from runners.matrix import run as matrix
from runners.matrix.run import Options
from upstreams.errors import UserError

SPEECH_COMMANDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keyword spotting, four words a class, in Speech Commands' layout: tones, so that it can be learned."""
    root = tmp_path_factory.mktemp("corpora")
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    random = np.random.default_rng(0)

    def write(path: Path, index: int, seconds: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        time_axis = np.arange(int(16000 * seconds)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * index) * time_axis)
        soundfile.write(path, tone + 0.01 * random.standard_normal(len(time_axis)), 16000)

    # The name before _nohash_ decides train or dev; 20 names hold both.
    for index, word in enumerate([*SPEECH_COMMANDS[:10], "bed"]):
        for n in range(20):
            write(train / word / f"{n:08x}_nohash_0.wav", index)
    write(train / "_background_noise_" / "noise.wav", 11, seconds=2.0)
    for index, word in enumerate(SPEECH_COMMANDS):
        write(test / word / f"{99:08x}_nohash_0.wav", index)
    return root


def write_matrix(path: Path, **changes: Any) -> Path:
    ks: dict[str, Any] = {"runner.total_steps": 4, "runner.eval_step": 2, "runner.save_step": 2, "runner.log_step": 2}
    ks |= {"runner.eval_dataloaders": ["dev"], "downstream_expert.datarc.num_workers": 0}
    content = {"upstreams": ["fbank_no_cmvn"], "tasks": {"ks": ks}, "seeds": [1], "device": "cpu"}
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


class FakeDownstream:
    """In s3prl's place: writes the checkpoints it would write; `behaviour` says what an upstream does."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.behaviour: dict[str, str] = {}

    def main(self, argv: list[str], on_step: Any = None) -> dict[str, float] | None:
        options = dict(zip(argv[::2], argv[1::2], strict=True))
        with self.calls.open("a") as file:
            file.write(json.dumps({**options, "store": "--feature-store" in argv}) + "\n")
        if options["-m"] == "evaluate":
            upstream = self.upstream_of(Path(options["-e"]))
            return {"acc": float("nan") if self.behaviour.get(upstream) == "nan" else 0.5, "loss": 1.0}
        resumed = "-e" in options
        expdir = Path(options["-e"] if resumed else options["-p"])
        upstream = (expdir / "states-2.ckpt").read_text() if resumed else options["-u"]
        (expdir / "states-2.ckpt").write_text(upstream)
        behaviour = self.behaviour.get(upstream)
        if behaviour == "raise":
            raise RuntimeError("the head\nexploded")
        if behaviour == "exit":
            sys.exit(2)
        if behaviour == "killed" and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if on_step is not None:
            on_step(2)
        if behaviour != "no best":
            dev = torch.tensor([self.dev(expdir)])
            torch.save({"Downstream": {"best_score": dev}, "upstream": upstream}, expdir / "dev-best.ckpt")
        return None

    def dev(self, expdir: Path) -> float:
        """The accuracy on dev: best at a learning rate of 0.01."""
        lr = yaml.safe_load((expdir.parent / "config.yaml").read_text())["optimizer"]["lr"]
        return 1 - abs(math.log10(lr) + 2) / 10

    def upstream_of(self, checkpoint: Path) -> str:
        if checkpoint.name.startswith("states"):
            return checkpoint.read_text()
        return str(torch.load(checkpoint, weights_only=True)["upstream"])

    def made(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDownstream:
    downstream = FakeDownstream(tmp_path)
    monkeypatch.setattr("runners.downstream.run.main", downstream.main)  # the workers are forks
    return downstream


def results(runs: Path, label: str, seed: int = 1) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs / "cells" / label / "ks" / f"seed{seed}" / "results.json").read_text())
    return content


def test_a_real_cell_is_trained_tested_and_reproduced_by_its_command(corpora: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml"), corpora, runs) == 0
    found = results(runs, "fbank_no_cmvn")
    assert found["metric"] == "acc"
    assert 0 <= found["value"] <= 1
    assert found["metrics"]["acc"] == found["value"]
    assert found["best_on_dev"] is (found["tested"] == "dev-best.ckpt")
    assert found["parameters"] == 0
    assert found["macs"] > 0
    assert found["corpus"] == {"speech": "real", "label": "as published"}
    assert found["seconds"]["train"] > 0
    assert {"superbit", "s3prl", "torch", "python", "commit"} <= set(found["versions"])

    line = shlex.split(found["command"])
    assert line[:2] == ["superbit", "downstream"]
    from runners.downstream import run as downstream

    again = downstream.main(line[2:])
    assert again is not None
    assert again["acc"] == found["value"]


def test_each_cell_runs_once_and_again_only_when_something_changed(
    corpora: Path, tmp_path: Path, fake: FakeDownstream
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, upstreams=["fbank", "fbank_no_cmvn"], seeds=[1, 2])
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    calls = fake.made()
    assert len(calls) == 2 * 4
    assert all(call["store"] is (call["-m"] == "train") for call in calls), "only training may use the store"
    assert {call.get("--seed") for call in calls if call["-m"] == "train"} == {"1", "2"}

    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    assert len(fake.made()) == 8

    # One changed value: the cells are other cells, and the old numbers are gone before the first new one is there.
    changed = yaml.safe_load(file.read_text())["tasks"]
    changed["ks"]["optimizer.lr"] = 0.5
    write_matrix(file, upstreams=["fbank", "fbank_no_cmvn"], tasks=changed)
    fake.behaviour["fbank"] = "raise"
    assert matrix.evaluate(file, corpora, runs) == 1
    assert not (runs / "cells/fbank/ks/seed1/results.json").exists()
    assert results(runs, "fbank_no_cmvn")["identity"]["config"]["optimizer"]["lr"] == 0.5

    # The corpora built anew: the numbers are of other speech.
    (corpora / "corpus.json").write_text(json.dumps({"tasks": {"ks": {"speech": "synthetic", "label": "as spoken"}}}))
    try:
        before = len(fake.made())
        assert matrix.evaluate(file, corpora, runs, only=["fbank_no_cmvn/ks"]) == 0
        assert len(fake.made()) == before + 2
        assert results(runs, "fbank_no_cmvn")["corpus"]["speech"] == "synthetic"
    finally:
        (corpora / "corpus.json").unlink()


def test_a_cell_that_fails_is_reported_and_the_others_go_on(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.behaviour = {"fbank": "raise", "mfcc": "nan", "mel": "exit", "linear": "killed"}
    file = write_matrix(tmp_path / "m.yaml", upstreams=["fbank", "mfcc", "mel", "linear", "fbank_no_cmvn"])
    runs = tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "RuntimeError: the head exploded" in said
    assert "acc = nan" in said
    assert "ended by signal 9" in said
    assert "4 of 5 cells failed" in said
    assert "Traceback" in (runs / "cells/fbank/ks/seed1/log.txt").read_text()
    written = sorted(path.parts[-4] for path in runs.glob("cells/*/*/*/results.json"))
    assert written == ["fbank_no_cmvn"]

    # The killed one had saved its states: it goes on from them. The failed ones are tried again.
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
    assert results(tmp_path / "runs", "fbank")["value"] == 0.5
    with pytest.raises(UserError, match=r"no checkpoint for sparseformer_dn_mini"):
        matrix.evaluate(file, corpora, tmp_path / "runs")


def test_learning_rates_are_chosen_on_dev_and_only_the_chosen_one_is_tested(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, learning_rates={"ks": [1.0e-1, 1.0e-2, 1.0e-4]})
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    found = results(runs, "fbank_no_cmvn")
    assert found["learning_rate"] == 0.01
    assert found["dev"] == pytest.approx(1.0)
    assert [tried["learning_rate"] for tried in found["learning_rates"]] == [0.1, 0.01, 0.0001]
    assert [round(tried["dev"], 2) for tried in found["learning_rates"]] == [0.9, 1.0, 0.8]
    assert "/lr0.01/expdir/dev-best.ckpt" in found["command"]
    calls = fake.made()
    assert [call["-m"] for call in calls].count("train") == 3
    assert [call["-m"] for call in calls].count("evaluate") == 1, "the test set is for the chosen one"
    assert "learning rate 0.01 chosen on dev" in capsys.readouterr().out

    # Another rate is tried: the trainings that are done stay, the choice is made anew.
    write_matrix(file, learning_rates={"ks": [1.0e-1, 1.0e-2, 1.0e-3, 1.0e-4]})
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    again = fake.made()[4:]
    assert [call["-m"] for call in again] == ["train", "evaluate"]
    assert len(results(runs, "fbank_no_cmvn")["learning_rates"]) == 4

    # Killed between the last training and the test: only the test is left.
    (runs / "cells/fbank_no_cmvn/ks/seed1/results.json").unlink()
    assert matrix.evaluate(file, corpora, runs, jobs=2) == 0
    assert [call["-m"] for call in fake.made()[6:]] == ["evaluate"]


def test_a_dry_run_lists_what_is_left_and_writes_nothing(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, upstreams=["fbank_no_cmvn", "mfcc"], learning_rates={"ks": [1.0e-1, 1.0e-2]})
    plan = Options(dry_run=True)
    assert matrix.evaluate(file, corpora, runs, jobs=2, options=plan) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "fbank_no_cmvn/ks seed 1 lr 0.1" in said
    assert "4 of 4 trainings to run" in said
    assert "2 of which nothing is known" in said  # s3prl's mfcc
    assert not runs.exists()
    assert not fake.made()

    assert matrix.evaluate(file, corpora, runs, jobs=2, only=["fbank_no_cmvn/ks"]) == 0
    capsys.readouterr()
    assert matrix.evaluate(file, corpora, runs, seeds=[1, 2], jobs=2, options=plan) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 of 8 trainings to run" in said
    # The other seed of the same cells is estimated from the one that was measured.
    assert len(re.findall(r"fbank_no_cmvn/ks seed 2 lr [\d.]+ new 4 \d+ s [\d.]+ [MG]B \d+ MB measured", said)) == 2


def test_without_a_store_and_with_another_folder(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file = write_matrix(tmp_path / "m.yaml")
    assert matrix.evaluate(file, corpora, tmp_path / "a", options=Options(store=False)) == 0
    assert [call["store"] for call in fake.made()] == [False, False]
    options = Options(store_folder=tmp_path / "elsewhere", store_gb=1.5)
    assert matrix.evaluate(file, corpora, tmp_path / "b", options=options) == 0
    training = fake.made()[2]
    assert training["--feature-store"] == str(tmp_path / "elsewhere")
    assert training["--feature-store-gb"] == "1.5"


def test_states_of_another_configuration_are_not_resumed(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
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


def test_without_a_best_checkpoint_the_last_states_are_tested(
    corpora: Path, tmp_path: Path, fake: FakeDownstream
) -> None:
    fake.behaviour = {"fbank": "no best"}
    runs = tmp_path / "runs"
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml", upstreams=["fbank"]), corpora, runs) == 0
    found = results(runs, "fbank")
    assert (found["tested"], found["best_on_dev"]) == ("states-2.ckpt", False)


def test_results_cut_short_are_not_trusted(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    path = runs / "cells/fbank_no_cmvn/ks/seed1/results.json"
    path.write_text(path.read_text()[:100])
    assert matrix.evaluate(file, corpora, runs) == 0
    assert results(runs, "fbank_no_cmvn")["value"] == 0.5


def test_workers_end_when_the_runner_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from runners.matrix.engines import Work, local\n"
        "def run(cell): Path(sys.argv[1], 'pid' + cell).write_text(str(__import__('os').getpid())); time.sleep(60)\n"
        "log = lambda cell: Path(sys.argv[1], cell + '.txt')\n"
        "work = Work(['a', 'b'], run, log, lambda c: 1, lambda c: False, False, lambda r: None)\n"
        "list(local.run(work, {'jobs': 2}))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    files = [tmp_path / "pida", tmp_path / "pidb"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in files]
    runner.kill()
    runner.wait()
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its runner"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs (one that has ended and that nobody has waited for does not)."""
    try:
        return re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is None
    except FileNotFoundError:
        return False


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
def test_bad_matrices_are_told_before_anything_runs(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        matrix.evaluate(write_matrix(tmp_path / "m.yaml", **changes), corpora, tmp_path / "runs")
    assert not fake.made()
    assert not (tmp_path / "runs").exists()


def test_other_bad_input_is_told_before_anything_runs(corpora: Path, tmp_path: Path, fake: FakeDownstream) -> None:
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
    assert not fake.made()
