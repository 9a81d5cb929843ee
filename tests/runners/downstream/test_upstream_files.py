"""A head is used with the upstream's checkpoint that it was trained on, wherever both lie now."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from runners.downstream import run as downstream
from runners.downstream.past import read_checkpoint
from runners.downstream.upstream_files import KEY
from tests.runners.downstream.experiments import overrides, train
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint

EVALUATE = ["-m", "evaluate", "--device", "cpu", "-e"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two checkpoints of one architecture with different weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    files = [folder / "first.safetensors", folder / "second.safetensors"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        checkpoint.save(file, checkpoint.build(preset("transformer_mini")), None, {})
    return files


@pytest.fixture(scope="module")
def trained(checkpoints: list[Path], tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an experiment on the first checkpoint."""
    expdir = tmp_path_factory.mktemp("trained")
    upstream = ["-u", "superbit_local", "-k", str(checkpoints[0])]
    train("ic", tiny_corpora, expdir, *upstream, changes=overrides("ic", steps=2))
    return expdir


def test_the_state_of_a_head_holds_the_digest_of_the_upstreams_checkpoint(
    trained: Path, checkpoints: list[Path]
) -> None:
    for name in ("states-2.ckpt", "dev-best.ckpt"):
        if (trained / name).exists():
            found = read_checkpoint(trained / name, "-e")[0][KEY]["upstream_ckpt"]
            assert found["file"] == str(checkpoints[0])
            assert found["sha256"] == hashlib.sha256(checkpoints[0].read_bytes()).hexdigest()


def test_evaluating_or_resuming_with_another_checkpoint_is_refused(trained: Path, checkpoints: list[Path]) -> None:
    both = rf"was trained on {checkpoints[0]} .*but {checkpoints[1]} has SHA-256"
    for mode in (["-m", "train", "--device", "cpu", "-e"], EVALUATE):
        with pytest.raises(UserError, match=both):
            downstream.main([*mode, str(trained), "-k", str(checkpoints[1])])
    initial = ["-m", "evaluate", "-d", "ic", "-p", str(trained.parent / "i"), "--device", "cpu"]
    with pytest.raises(UserError, match=both):
        given = ["-i", str(trained / "states-2.ckpt"), "-u", "superbit_local", "-k", str(checkpoints[1])]
        downstream.main([*initial, *given, "--corpora", _corpora(trained)])


def _corpora(trained: Path) -> str:
    config = torch.load(trained / "states-2.ckpt", weights_only=True)["Config"]
    return str(Path(config["downstream_expert"]["datarc"]["file_path"]).parent)


def test_a_checkpoint_that_was_replaced_under_its_name_is_refused(
    trained: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    before = checkpoints[0].read_bytes()
    try:
        shutil.copyfile(checkpoints[1], checkpoints[0])
        with pytest.raises(UserError, match=rf"was trained on {checkpoints[0]} with SHA-256"):
            downstream.main([*EVALUATE, str(trained)])
    finally:
        checkpoints[0].write_bytes(before)


def test_a_moved_run_and_a_renamed_checkpoint_are_evaluated_and_resumed(
    trained: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    expected = downstream.main([*EVALUATE, str(trained)])
    moved, renamed = tmp_path / "moved", tmp_path / "renamed.safetensors"
    shutil.copytree(trained, moved)
    shutil.copyfile(checkpoints[0], renamed)
    (moved / "test_predict.csv").unlink()
    there = sorted(trained.iterdir())
    assert downstream.main([*EVALUATE, str(moved), "-k", str(renamed)]) == expected
    assert (moved / "test_predict.csv").exists(), "predictions are written where the run is now"
    resume = ["-m", "train", "--device", "cpu", "-e", str(moved), "-k", str(renamed), "-p", str(moved)]
    downstream.main([*resume, "-o", "config.runner.total_steps=4"])
    assert (moved / "states-4.ckpt").exists()
    assert sorted(trained.iterdir()) == there, "nothing is written where the run was before"


def test_a_checkpoint_that_is_gone_is_named_with_its_digest(
    trained: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    hidden = checkpoints[0].rename(tmp_path / "hidden")
    try:
        with pytest.raises(UserError, match=rf"{checkpoints[0]}.*-k"):
            downstream.main([*EVALUATE, str(trained)])
    finally:
        hidden.rename(checkpoints[0])
