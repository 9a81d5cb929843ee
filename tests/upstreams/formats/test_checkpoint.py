"""Checkpoints: what is written is read back; damaged and altered files are refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig, preset, preset_names
from upstreams.errors import UserError
from upstreams.formats import checkpoint

HUBERT_ENCODER = EncoderConfig("transformer", layers=2, dim=48, heads=4, position_groups=16)
SMALL_HUBERT = ModelConfig("small", FrontEndConfig("waveform", "utterance", width=16), HUBERT_ENCODER)


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


@pytest.mark.parametrize("name", [*(n for n in preset_names() if n.endswith("_mini")), "hubert"])
@torch.no_grad()
def test_a_loaded_model_is_the_saved_one_to_the_last_bit(name: str, tmp_path: Path) -> None:
    """Though it is built on the meta device, where no constant has a value; and loading draws no random number."""
    torch.manual_seed(3)
    model = checkpoint.build(SMALL_HUBERT if name == "hubert" else preset(name)).eval()
    checkpoint.save(tmp_path / "saved.safetensors", model, None, {})
    before = torch.get_rng_state()
    loaded = checkpoint.load(tmp_path / "saved.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (loaded, model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) and ours[key].dtype == tensor.dtype for key, tensor in theirs.items())
    waveforms, lengths = torch.randn(2, 16_000) * 0.1, torch.tensor([16_000, 9_000])
    states = zip(loaded(waveforms, lengths), model(waveforms, lengths), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


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


def test_loading_imports_no_compiler() -> None:
    """An initialisation on the meta device, which is for nothing, would import it and take more than a second."""
    code = (
        "import sys\nfrom upstreams.config import preset, preset_names\nfrom upstreams.formats import checkpoint\n"
        "for name in preset_names():\n    checkpoint.skeleton(preset(name))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
