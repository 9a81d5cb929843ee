"""Validation during pre-training: its losses are logged, and it does not change the training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.audio.manifest import Manifest
from pretrain.targets.label_files import read_labels
from pretrain.targets.labels import write_valid_labels
from pretrain.training.state import States
from tests.pretrain.command import superbit, weights
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import FrontEndConfig
from upstreams.errors import UserError


def test_validation_logs_its_loss_and_changes_no_weight(work: Path, tmp_path: Path) -> None:
    valid = write_corpus(tmp_path / "valid", utterances=4, seconds=1.1)
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path / "run", "--valid", valid]
    done = superbit("pretrain", work / "recipe.yaml", *where, "--set", "save_every=1", "--set", "keep=1")
    assert done.returncode == 0, done.stderr
    name = "checkpoints/sparseformer_dn_mini.safetensors"
    ours, reference = weights(tmp_path / "run" / name), weights(work / "run" / name)
    assert all(torch.equal(ours[key], reference[key]) for key in reference)
    for iteration, steps in (("iteration1", 6), ("iteration2", 4)):
        folder = tmp_path / "run/pretrain/sparseformer_dn_mini" / iteration
        events = EventAccumulator(str(folder))
        events.Reload()
        losses = [event.value for event in events.Scalars("valid/loss")]
        assert len(losses) == steps and all(0 < loss < 2 * math.log(10) + 2 for loss in losses)
        assert all(0 <= event.value <= 1 for event in events.Scalars("valid/accuracy"))
        assert [saved.step for saved in States(folder).saved()] == [steps]


def test_stored_centroids_give_the_training_audio_the_same_labels(work: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(work / "audio/train.tsv")
    made = work / "run/labels/mfcc8_25hz_frame1"
    for name in ("kmeans.safetensors", "dict.km.txt"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    again = write_valid_labels(manifest, tmp_path, 4)
    ours, reference = (read_labels(path, manifest, FrontEndConfig()) for path in (again, made / "train.km"))
    assert all((own == theirs).all() for own, theirs in zip(ours, reference, strict=True))


def test_a_label_set_without_centroids_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither valid\.km nor kmeans\.safetensors"):
        write_valid_labels(Manifest.read(work / "audio/train.tsv"), tmp_path, 4)
