"""Other packages that s3prl imports."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from upstreams.errors import UserError
from upstreams.s3prl.compat import packages


def test_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "omegaconf" else find_spec(name))
    with pytest.raises(UserError, match="pip install omegaconf"):
        packages.check_undeclared_requirements()


def test_hugging_face_placeholders_refuse_to_be_used() -> None:
    from huggingface_hub import HfFolder, Repository

    for use in (HfFolder.get_token, lambda: HfFolder.save_token("x"), lambda: Repository("dir")):
        with pytest.raises(UserError, match="--hub"):
            use()


def test_hugging_face_upstreams_are_refused_by_plain_s3prl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from s3prl import run_downstream

    (tmp_path / "config.yaml").write_text("{}")
    arguments = ["-m", "train", "--hub", "huggingface", "-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", *arguments])
    with pytest.raises(UserError, match="--hub"):
        run_downstream.main()


def test_the_drawn_indices_are_distributed_over_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from catalyst.data.sampler import DistributedSamplerWrapper

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    drawn = [5, 3, 5, 0, 1, 4, 2]
    distributed = []
    for rank in range(2):
        monkeypatch.setattr("torch.utils.data.distributed.dist.is_available", lambda: True)
        monkeypatch.setattr("torch.utils.data.distributed.dist.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.utils.data.distributed.dist.get_rank", lambda rank=rank: rank)
        distributed.append(list(DistributedSamplerWrapper(drawn)))
    assert distributed == [[5, 5, 1, 2], [3, 0, 4, 5]]  # the last one repeats the first, for equal lengths


def test_checkpoints_with_a_namespace_load(tmp_path: Path) -> None:
    torch.save({"Args": argparse.Namespace(seed=3)}, tmp_path / "states-1.ckpt")
    assert torch.load(tmp_path / "states-1.ckpt")["Args"].seed == 3
