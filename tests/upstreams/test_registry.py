"""Upstream names, their checkpoints and their costs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import superbit
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


def test_a_shipped_checkpoint_serves_where_the_folder_has_none(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(registry, "SHIPPED", saved.parent)
    monkeypatch.setenv(registry.CHECKPOINTS, str(own))
    caplog.set_level("INFO")
    assert registry.checkpoint_path("sparseformer_dn_mini_w1a32") == saved
    assert f"there is no {own / saved.name}, so the checkpoint that comes with superbit is used" in caplog.text
    shutil.copy(saved, own)
    assert registry.checkpoint_path("sparseformer_dn_mini_w1a32") == own / saved.name


def test_shipped_checkpoints_are_packed_models_of_their_names_and_on_the_model_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.CHECKPOINTS, str(tmp_path))
    card = (registry.SHIPPED / "README.md").read_text(encoding="utf-8")
    found = sorted(registry.SHIPPED.glob("*.safetensors"))
    assert found
    for path in found:
        model = superbit.load(path.stem)
        registry.check_architecture(path.stem, model.config, path)
        assert f"`{path.stem}`" in card and path.stat().st_size < 700_000
        states = torch.stack(model(torch.zeros(1, 16000)))
        assert states.shape[2] == 25 and bool(torch.isfinite(states).all())


def test_a_binary_weight_takes_one_bit_of_storage(saved: Path) -> None:
    described = registry.describe("superbit_local", saved)
    binary = 8 * (4 * 128 * 128 + 2 * 128 * 640)
    buffers = 2 * 80 + 2 * 9 * 128 + 128 * 128  # normalisation of the mel bins; the output map
    assert described["storage_bytes"] == binary // 8 + 8 * 6 * 4 + 4 * (described["parameters"] - binary + buffers)
    assert registry.describe("fbank")["parameters"] == 0


def test_fbank_macs_are_near_the_published() -> None:
    assert registry.describe("fbank")["macs"] == pytest.approx(0.48e9, rel=0.1)  # SUPERB leaderboard
