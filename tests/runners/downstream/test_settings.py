"""Settings of an experiment: from flags, configuration and checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from runners.downstream import run as downstream
from tests.runners.downstream.experiments import overrides, train
from upstreams.errors import UserError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-u", "fbnk"], "no upstream 'fbnk' .*'fbank'"),
        (["-u", "superbit_local"], "-k"),
        (["-u", "superbit_local", "-k", "no.safetensors"], r"no\.safetensors"),
        (["-o", "config.runner.totl_steps=3"], r"'runner\.total_steps'"),
        (["-o", "args.sead=3"], "no argument 'sead' .*'seed'"),
        (["-o", "runner.total_steps=3"], r"args\.<flag>=<value>"),
        (["-o", "config.runner.total_steps"], r"args\.<flag>=<value>"),
        (["-o", "config.runner.total_steps=__import__('os').getpid()"], "must be a number"),
        (["-o", "config.optimizer.torch_optim_name=Adem"], r"no optimizer\.torch_optim_name 'Adem': .*'Adam'"),
        (["-o", "config.optimizer.name=TorchOptm"], r"no optimizer\.name 'TorchOptm': .*'TorchOptim'"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_bad_names_in_flags_and_config(more: list[str], message: str, tiny_corpora: Path, tmp_path: Path) -> None:
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given = ["-m", "train", "-u", "fbank", "-d", "ks", "-p", str(tmp_path / "exp"), "--corpora", str(tiny_corpora)]
    with pytest.raises(UserError, match=message):
        downstream.main([*given, *more])
    assert not (tmp_path / "exp").exists()


def test_a_file_that_is_not_an_experiments_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "states-1.ckpt").write_bytes(b"PK half a file")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    for path, message in (
        (tmp_path, r"states-1\.ckpt is damaged, or not one of s3prl's: torch cannot read it \(\w+\)$"),
        (tmp_path / "other.ckpt", "is not a checkpoint of a downstream experiment"),
    ):
        with pytest.raises(UserError, match=message):
            downstream.main(["-m", "evaluate", "-e", str(path)])


def test_resuming_a_finished_experiment_changes_nothing(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("ic", tiny_corpora, tmp_path / "exp")
    before = (tmp_path / "exp" / "states-4.ckpt").read_bytes()
    capsys.readouterr()
    train("ic", tiny_corpora, tmp_path / "exp", "-a", "--seed", "5")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[superbit]")]
    assert "seed stays 1337" in notes[0] and "-o args.seed=5" in notes[0]
    assert "is at step 4 of 4: there is nothing to train" in notes[1]
    assert all("dev-best.ckpt" in note for note in notes[2:])
    assert (tmp_path / "exp" / "states-4.ckpt").read_bytes() == before


def test_the_corpora_may_move(tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_corpora, first)
    monkeypatch.setenv("SUPERBIT_CORPORA", str(first))
    arguments = ["-m", "train", "-u", "fbank", "-d", "pr", "-p", str(tmp_path / "exp"), "--device", "cpu"]
    downstream.main([*arguments, "-o", overrides("pr")])
    before = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "exp"), "--device", "cpu"])
    first.rename(second)
    with pytest.raises(UserError, match="first"):
        downstream.main(["-m", "evaluate", "-e", str(tmp_path / "exp"), "--device", "cpu"])
    moved = ["-m", "evaluate", "-e", str(tmp_path / "exp"), "--corpora", str(second), "--device", "cpu"]
    assert downstream.main(moved) == before
