"""`superbit downstream` on a few sounds in the layout of each task's real corpus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from runners.downstream import run as downstream
from runners.tasks import SEVEN, TASKS
from tests.runners.downstream.experiments import logged, overrides, train
from upstreams.errors import UserError


@pytest.mark.parametrize("name", SEVEN)
def test_train_evaluate_and_resume(
    name: str, tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, expdir = TASKS[name], tmp_path / "exp"
    train(name, tiny_corpora, expdir)
    assert [path.name for path in expdir.glob("states-*.ckpt")] == ["states-4.ckpt"]
    config = yaml.safe_load((expdir / "config.yaml").read_text())
    assert config["runner"]["total_steps"] == 4 and "${" not in str(config)

    states = expdir / "states-4.ckpt"
    capsys.readouterr()
    metrics = downstream.main(["-m", "evaluate", "-e", str(states), "--device", "cpu"])
    assert metrics is not None and task.metric in metrics
    assert f"{task.eval_split} {task.metric}: {metrics[task.metric]}" in capsys.readouterr().out
    # Evaluating a checkpoint gives the values that training logged at its step.
    split = config["runner"]["eval_dataloaders"][0]
    again = downstream.main(["-m", "evaluate", "-e", str(states), "-t", split, "--device", "cpu"])
    assert again is not None
    for metric, value in again.items():
        step, before = logged(expdir)[f"{split}-{metric}"][-1]
        assert step == 4 and value == pytest.approx(before, rel=1e-6)
    assert downstream.main(["-m", "evaluate", "-e", str(expdir), "--device", "cpu"]) == metrics

    capsys.readouterr()
    train(name, tiny_corpora, expdir, "-a", changes="config.runner.total_steps=6")
    assert "stays" not in capsys.readouterr().out
    assert [path.name for path in expdir.glob("states-*.ckpt")] == ["states-6.ckpt"]
    assert logged(expdir)[f"{split}-{task.metric}"][-1][0] == 6
    assert torch.load(expdir / "states-6.ckpt")["Step"] == 6


def test_the_seed_determines_the_weights(tiny_corpora: Path, tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate(("1", "1", "2")):
        train("ks", tiny_corpora, tmp_path / str(number), "--seed", seed)
        state = torch.load(tmp_path / str(number) / "states-4.ckpt")["Downstream"]
        weights.append(state["projector.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_device_cpu_does_not_touch_the_gpu(tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --device cpu, s3prl itself would enter torch.cuda.device."""

    def touched(*args: Any) -> None:
        raise AssertionError("the GPU was touched")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", touched)
    monkeypatch.setattr(torch.cuda, "set_device", touched)
    train("ic", tiny_corpora, tmp_path / "exp")
    assert torch.cuda.is_available()


def test_two_ranks(tiny_corpora: Path, tmp_path: Path) -> None:
    """Both ranks count their steps and end, and only rank 0 writes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [str(Path(sys.executable).with_name("superbit")), "downstream", "-m", "train", "-u", "fbank_no_cmvn"]
    arguments = ["-d", "ks", "-p", str(tmp_path), "--corpora", str(tiny_corpora), "-o", overrides("ks")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, *command, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "states-4.ckpt")
    assert (checkpoint["WorldSize"], checkpoint["Args"].local_rank) == (2, 0)
    assert len(list(tmp_path.glob("args_*.yaml"))) == 1
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path), "--device", "cpu"])
    assert metrics is not None and 0 <= metrics["acc"] <= 1


def test_inference_of_a_file(tiny_corpora: Path, tmp_path: Path) -> None:
    train("asr", tiny_corpora, tmp_path)
    file = next((tiny_corpora / "LibriSpeech").rglob("*.flac"))
    downstream.main(["-m", "inference", "-e", str(tmp_path), "-t", str(file), "--device", "cpu"])
    assert (tmp_path / "inference.ark").read_text().startswith(file.stem)
    with pytest.raises(UserError, match="there is no audio file"):
        downstream.main(["-m", "inference", "-e", str(tmp_path), "-t", "nothing.wav", "--device", "cpu"])


def test_unknown_features_are_refused(tiny_corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no features 'hiden_states' .*'hidden_states'"):
        train("ks", tiny_corpora, tmp_path, "-s", "hiden_states")


def test_a_train_split_that_fills_no_batch(tiny_corpora: Path, tmp_path: Path) -> None:
    changes = overrides("ks", **{"config.downstream_expert.datarc.batch_size": 1000})
    with pytest.raises(UserError, match="the train split of speech_commands fills no batch"):
        train("ks", tiny_corpora, tmp_path, changes=changes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("task", ["ks", "pr"])
def test_corrupt_audio_is_an_error_that_names_the_file(
    task: str, workers: int, tiny_corpora: Path, tmp_path: Path
) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    if task == "pr":
        corrupt = root / "LibriSpeech" / "train-clean-100" / "100" / "2" / "100-2-0002.flac"
    else:
        corrupt = sorted((root / "speech_commands_v0.01" / "up").iterdir())[-1]
    corrupt.write_bytes(b"RIFF and then nothing")
    changes = overrides(task, steps=40, workers=workers)
    with pytest.raises(UserError, match=f"^cannot read the audio file .*{corrupt.name}") as raised:
        train(task, root, tmp_path / "exp", changes=changes)
    assert "\n" not in str(raised.value)
