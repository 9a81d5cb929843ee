"""Upstream names, their checkpoints and their costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from upstreams import registry
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = checkpoint.build(dataclasses.replace(preset("sparseformer_dn_mini"), bits="w1a32"))
    path = tmp_path / "sparseformer_dn_mini_w1a32.safetensors"
    checkpoint.save(path, model, torch.nn.Linear(128, 5), {"seed": 3})
    return path


def test_registry_finds_checkpoints_and_names(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.CHECKPOINTS, str(saved.parent))
    assert registry.checkpoint_path("sparseformer_dn_mini_w1a32") == saved
    assert registry.checkpoint_path("superbit_local", saved) == saved
    with pytest.raises(UserError, match="did you mean 'sparseformer_dn_mini'"):
        registry.checkpoint_path("sparsformer_dn_mini")
    with pytest.raises(UserError, match="no checkpoint for transformer_mini"):
        registry.checkpoint_path("transformer_mini")
    with pytest.raises(UserError, match="-k FILE"):
        registry.checkpoint_path("superbit_local")


def test_a_binary_weight_takes_one_bit_of_storage(saved: Path) -> None:
    described = registry.describe("superbit_local", saved)
    binary = 8 * (4 * 128 * 128 + 2 * 128 * 640)
    buffers = 2 * 80 + 2 * 9 * 128 + 128 * 128  # normalisation of the mel bins; the output map
    assert described["storage_bytes"] == binary // 8 + 8 * 6 * 4 + 4 * (described["parameters"] - binary + buffers)
    assert registry.describe("fbank")["parameters"] == 0


def test_fbank_macs_are_near_the_published() -> None:
    assert registry.describe("fbank")["macs"] == pytest.approx(0.48e9, rel=0.1)  # SUPERB leaderboard
