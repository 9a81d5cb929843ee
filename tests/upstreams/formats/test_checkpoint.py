"""Checkpoints: what is written is read back; damaged and altered files are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
    """Change one bit of a weight, or a word of the metadata, in place; the file is still a valid safetensors file."""
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
    del about["config"]["quantization"]  # the first checkpoints have no such key either
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
