"""Training with several ranks: which micro-batches a rank computes, and the sum of the gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.audio.data import BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.training import distributed
from upstreams.errors import UserError


def test_more_ranks_than_micro_batches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="has 2 micro-batches, which 3 processes cannot share"):
        distributed.micro_batches_of_rank(2)


def test_ranks_share_the_micro_batches_of_a_step(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(work / "audio/train.tsv")
    order, crops = BatchOrder(manifest, 640, 3.0, 1.0, seed=1), Crops(manifest, None, 640)
    alone = [batch.waveforms for batch in loader(crops, order, 2, 5, micro_batches=2)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = distributed.micro_batches_of_rank(2)
        ours = [batch.waveforms for batch in loader(crops, order, 2, 5, micro_batches=2, share=share)]
        assert len(ours) == 3 and all(torch.equal(a, b) for a, b in zip(ours, alone[rank::2], strict=True))


def test_two_ranks_get_the_gradients_of_one_process() -> None:
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.pretrain.ranks"]
    done = subprocess.run([sys.executable, "-m", *launch], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
