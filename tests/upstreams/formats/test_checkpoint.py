"""Checkpoints, names and costs: what is written is what is read, what is damaged is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from upstreams import cost, registry
from upstreams.config import ModelConfig, from_dict, preset, preset_names
from upstreams.errors import UserError
from upstreams.formats import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = checkpoint.build(dataclasses.replace(preset("sparseformer_dn_mini"), bits="w1a32"))
    path = tmp_path / "sparseformer_dn_mini_w1a32.safetensors"
    checkpoint.save(path, model, torch.nn.Linear(128, 5), {"seed": 3})
    return path


@torch.no_grad()
def test_round_trip(saved: Path) -> None:
    config, tensors, provenance = checkpoint.read(saved)
    assert config.bits == "w1a32" and provenance == {"seed": 3} and tensors["head.weight"].shape == (5, 128)
    waveforms = torch.randn(1, 16_000) * 0.1
    first, second = (checkpoint.load(saved)(waveforms) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_failed_write_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(saved, checkpoint.load(saved), None, {"not JSON": object()})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle"])
def test_damaged_checkpoints_are_refused(saved: Path, damage: str) -> None:
    data = saved.read_bytes()
    if damage == "truncated":
        saved.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        saved.write_bytes(b"")
    else:
        torch.save({"model": torch.zeros(3)}, saved)
    with pytest.raises(UserError, match="damaged or not a superbit checkpoint"):
        checkpoint.load(saved)


@pytest.mark.parametrize("part", ["weights", "bits", "provenance"])
def test_altered_checkpoints_are_refused(saved: Path, part: str) -> None:
    """One bit of one weight, or a word of the metadata, changed in place: the file itself is still a valid one."""
    data = bytearray(saved.read_bytes())
    if part == "weights":
        data[-5] ^= 1
    else:
        old, new = {"bits": (b"w1a32", b"w1a8 "), "provenance": (b'seed\\": 3', b'seed\\": 4')}[part]
        assert data.count(old) == 1
        data = data.replace(old, new)
    saved.write_bytes(data)
    with pytest.raises(UserError, match="was altered after it was written"):
        checkpoint.load(saved)


def test_a_checkpoint_without_digest_still_loads(saved: Path) -> None:
    config, tensors, _ = checkpoint.read(saved)
    about = {"format": 1, "config": dataclasses.asdict(config), "provenance": {"seed": 3}}
    del about["config"]["quantization"]  # which the first checkpoints do not have either
    save_file(tensors, saved, metadata={"superbit": json.dumps(about)})
    again, loaded, _ = checkpoint.read(saved)
    assert again == config and all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_a_checkpoint_that_does_not_fit_its_configuration_is_refused(saved: Path) -> None:
    config, tensors, _ = checkpoint.read(saved)
    about = {"format": 1, "config": dataclasses.asdict(config), "provenance": {}}
    del tensors["model.encoder.norm.weight"]
    save_file(tensors, saved, metadata={"superbit": json.dumps(about)})
    with pytest.raises(UserError, match=r"encoder\.norm\.weight"):
        checkpoint.load(saved)


def test_unknown_configuration_keys_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key 'layer' in x\.encoder: did you mean 'layers'"):
        from_dict(ModelConfig, {"name": "m", "encoder": {"layer": 3}}, "x")
    with pytest.raises(UserError, match="must be of type int"):
        from_dict(ModelConfig, {"name": "m", "encoder": {"layers": "3"}}, "x")


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


@pytest.mark.parametrize("name", [n for n in preset_names() if n.endswith(("_mini", "_s")) or n == "distilhubert"])
def test_macs_equal_what_torch_counts(name: str) -> None:
    """torch's FlopCounterMode on a real forward pass (2 operations a MAC), over whole blocks of the window."""
    model = checkpoint.build(preset(name)).eval()
    samples = 64 * 640  # 64 frames
    counter = FlopCounterMode(display=False)
    # torch has no formula for its CPU flash attention: the two plain products are counted instead.
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(1, samples))
    assert cost.macs(model, samples) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_storage_counts_a_bit_a_binary_weight(saved: Path) -> None:
    described = registry.describe("superbit_local", saved)
    binary = 8 * (4 * 128 * 128 + 2 * 128 * 512)
    buffers = 2 * 80 + 2 * 9 * 128 + 128 * 128  # normalisation of the mel bins; the output's map
    assert described["storage_bytes"] == binary // 8 + 8 * 6 * 4 + 4 * (described["parameters"] - binary + buffers)
    assert registry.describe("fbank")["parameters"] == 0


def test_fbank_macs_are_near_the_published() -> None:
    assert registry.describe("fbank")["macs"] == pytest.approx(0.48e9, rel=0.1)  # SUPERB leaderboard
