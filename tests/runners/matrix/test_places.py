"""Run folders, corpora and checkpoints in any place, under any name; output that is no terminal."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from runners.matrix import progress
from runners.matrix import run as matrix
from runners.matrix.heartbeat import Heartbeat
from runners.matrix.run import Options
from runners.report.layer_weights import layer_weights
from runners.report.submission import write_submission
from runners.report.table import collect
from tests.runners.matrix.fakes import FakeDownstream, results, write_matrix
from tests.tiny_corpora import Sounds, librispeech
from tests.tiny_more_corpora import quesst
from upstreams.config import preset
from upstreams.formats import checkpoint

ODD = "a 'b' \"c\" [d] *?{e}<f> ${root} $g,,h;i#j%k=l&m|n\\o:p~q é\nr"


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results without costs, whose counting takes seconds."""
    nothing = {"parameters": None, "macs": None, "storage_bytes": None}
    monkeypatch.setattr("runners.matrix.results.costs", lambda cell: nothing)  # the workers are forks


def save_checkpoint(path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("transformer_mini")), None, {})
    return path


def test_a_run_folder_that_moves_resumes_with_moved_corpora_and_a_renamed_checkpoint(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    old, new = tmp_path / "old", tmp_path / "new,,'name'"
    old.mkdir()
    shutil.copytree(corpora, old / "corpora")
    weights = save_checkpoint(old / "weights.safetensors")
    own = {"downstream_expert.datarc.speech_commands_test_root": str(old / "test,, set")}
    (old / "corpora" / "speech_commands_test_set_v0.01").rename(old / "test,, set")

    def write(root: Path, weights: Path) -> Path:
        file = write_matrix(root / "m.yaml", upstreams=[{"label": "m", "name": "superbit_local", "ckpt": str(weights)}])
        content = yaml.safe_load(file.read_text())
        content["tasks"]["ks"] |= {key: value.replace(str(old), str(root)) for key, value in own.items()}
        file.write_text(yaml.safe_dump(content))
        return file

    def stop(self: Heartbeat, step: int) -> None:
        if step == 3:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Heartbeat, "__call__", stop)  # the workers are forks
        assert matrix.evaluate(write(old, weights), old / "corpora", old / "runs") == 1
    old.rename(new)
    weights = (new / "weights.safetensors").rename(new / "renamed.safetensors")
    assert matrix.evaluate(write(new, weights), new / "corpora", new / "runs") == 0
    found = results(new / "runs", "m")
    assert found["resumed_at_step"] == 2
    assert not old.exists(), "nothing is written where the runs were"

    # Finished and moved again: everything is still there.
    new.rename(old)
    weights = old / "renamed.safetensors"
    assert matrix.evaluate(write(old, weights), old / "corpora", old / "runs") == 0
    assert results(old / "runs", "m") == found
    assert len(layer_weights(collect([old / "runs"]), "m")["ks"]) > 1
    write_submission(old / "runs", "m", old / "submission", None, print)
    assert (old / "submission/predict/ks_public/predict.txt").is_file()
    assert not new.exists()


def test_any_character_works_in_the_names_of_folders_files_and_rows(tmp_path: Path, uncounted: None) -> None:
    root = tmp_path / ODD
    (root / "corpora").mkdir(parents=True)
    librispeech(root / "corpora", Sounds(0))
    quesst(root / "corpora/quesst14Database")
    weights = save_checkpoint(root / f"{ODD}.safetensors")
    pr = {f"runner.{key}_step": 1 for key in ("log", "eval", "save")} | {"runner.total_steps": 2}
    pr |= {"downstream_expert.corpus.batch_size": 2, "downstream_expert.corpus.num_workers": 0}
    file = write_matrix(
        root / f"{ODD}.yaml",
        upstreams=[{"label": ODD, "name": "superbit_local", "ckpt": str(weights)}],
        tasks={"pr": pr, "qbe": {}},
    )
    runs = root / "runs"
    assert matrix.evaluate(file, root / "corpora", runs, jobs=2, only=[f"{ODD}/pr", f"{ODD}/qbe"]) == 0
    assert matrix.evaluate(file, root / "corpora", runs) == 0
    assert len(list((runs / "cells" / ODD / "pr/seed1/expdir").glob("states-*.ckpt"))) == 1, "max_keep is 1"
    write_submission(runs, ODD, root / "submission", None, print)
    assert {path.name for path in tmp_path.iterdir()} == {ODD}


def test_output_that_is_no_terminal_gets_a_line_every_minute(
    corpora: Path,
    tmp_path: Path,
    fake: FakeDownstream,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert progress.LINE_SECONDS == 60
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml"), corpora, tmp_path / "runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("0 of 1 stages ended, 0 failed" in line for line in lines)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # superbit --quiet
    assert matrix.evaluate(write_matrix(tmp_path / "m.yaml"), corpora, tmp_path / "quiet") == 0
    assert "stages ended" not in capsys.readouterr().out


def test_a_dry_run_of_a_finished_matrix_answers_without_torch_and_s3prl(
    corpora: Path, tmp_path: Path, fake: FakeDownstream
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(
        file, upstreams=["fbank", {"label": "m", "name": "customized_upstream", "ckpt": str(tmp_path / "m.pt")}]
    )
    (tmp_path / "m.pt").write_bytes(b"weights")
    assert matrix.evaluate(file, corpora, runs) == 0
    script = (
        "import sys; from pathlib import Path; from runners.matrix.run import Options, evaluate\n"
        "for dry_run in (True, False):\n"
        "    evaluate(sys.argv[1], *map(Path, sys.argv[2:]), options=Options(dry_run=dry_run))\n"
        "assert not {'torch', 's3prl', 'soundfile', 'pandas', 'scipy'} & sys.modules.keys()"
    )
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    command = [sys.executable, "-c", script, str(file), str(corpora), str(runs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 trainings to run" in done.stdout and "2 of 2 cells are done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before, "nothing is written"
    assert Options().engine == "local"
