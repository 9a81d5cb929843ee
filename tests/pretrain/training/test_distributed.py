"""Training with several ranks: which micro-batches a rank computes, and the sum of the gradients."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.audio.data import BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.training import distributed
from tests.pretrain.tiny_audio import write_corpus
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


def test_ranks_with_unreadable_files_finish_and_count_them(tmp_path: Path) -> None:
    """Two ranks, one of which cannot read its files; and other ways in which ranks differ (uneven_ranks.py)."""
    write_corpus(tmp_path / "audio", utterances=8)
    (tmp_path / "recipe.yaml").write_text(
        "model: sparseformer_sw_mini\nencoder: {layers: 1}\nbatch_seconds: 8\ncrop_seconds: 1.0\ncluster_starts: 1\n"
        "cluster_fraction: 1.0\niterations: [{layer: 0, clusters: 4, steps: 3}]\nobjective: {utterance_layer: 1}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.pretrain.uneven_ranks", str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env=os.environ | place | {"RANK": str(k)}, stderr=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    assert "the number of processes at the start of the run changes the negatives of the utterance loss" in errors[0]
    events = EventAccumulator(str(tmp_path / "run/pretrain/sparseformer_sw_mini/iteration1"))
    events.Reload()
    first, last = (event.value for event in events.Scalars("unreadable_files"))  # of steps 0 and 2
    assert first >= 2 and last == first + 1
    assert [event.value for event in events.Scalars("skipped_steps")] == [0, 0]
