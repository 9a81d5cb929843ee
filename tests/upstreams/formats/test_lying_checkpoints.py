"""Checkpoints that lie: values of other types, impossible sizes, names that are paths. `superbit.load` refuses them."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save_file
from typer.testing import CliRunner

import superbit
from pretrain.objectives.distillation import load_with_head
from pretrain.objectives.hubert import LinearHead
from runners.cli import app
from upstreams import registry
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.formats import checkpoint

TINY = ModelConfig(
    "tiny", FrontEndConfig(mels=8), EncoderConfig(layers=1, dim=16, heads=2, feed_forward_dim=16, position_groups=16)
)


def write(path: Path, description: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a file with that description, text or JSON, and no digest."""
    text = description if isinstance(description, str) else json.dumps(description)
    save_file({"model.x": torch.zeros(3)} if tensors is None else tensors, path, metadata={"superbit": text})
    return path


def described(**encoder: Any) -> dict[str, Any]:
    config = dataclasses.asdict(TINY)
    return {"format": 1, "config": {**config, "encoder": {**config["encoder"], **encoder}}, "provenance": {}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "tiny.safetensors", checkpoint.build(TINY), LinearHead(16, 5), {"seed": 1})
    return tmp_path / "tiny.safetensors"


@pytest.mark.parametrize(
    "description",
    [
        "",
        "null",
        "3",
        "[]",
        '"text"',
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1, "config": {"name": "x", "encoder": {"layers": ' + "9" * 4000 + '}}, "provenance": {}}',
        {"format": 1},
        {"format": 1, "config": None, "provenance": {}},
        {"format": 1, "config": {"name": "x"}},
        {"format": 1, "config": {"name": "x"}, "provenance": []},
        {"format": [], "config": {"name": "x"}, "provenance": {}},
        {"format": 1, "config": {"name": None}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "encoder": []}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "encoder": {"layers": True}}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "encoder": {"dropout": "0"}}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "encoder": {"dropout": float("nan")}}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "quantization": {"overrides": [1]}}, "provenance": {}},
        {"format": 1, "config": {"name": "x", "bits": {"w": 1}}, "provenance": {}},
        {"format": 1, "config": {"name": "x"}, "provenance": {}, "digest": {"a": 1}},
    ],
    ids=lambda value: (value if isinstance(value, str) else json.dumps(value))[:60],
)
def test_metadata_of_other_types(description: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", description)
    for read in (superbit.load, load_with_head, checkpoint.read_config):
        if read is checkpoint.read_config and isinstance(description, dict) and "digest" in description:
            continue  # a configuration is read without the digest
        try:
            read(path)
        except UserError as error:
            assert len(str(error)) < 1000
        else:
            assert read is checkpoint.read_config  # which needs neither format nor provenance


def test_a_tensor_of_71_dimensions(tmp_path: Path) -> None:
    data = save({"model.x": np.zeros(1, np.float32)}, metadata={"superbit": json.dumps(described())})
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    header = header.replace(b"[1]", b"[" + b",".join([b"1"] * 71) + b"]")
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match=r"x\.safetensors"):
        superbit.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("encoder", "tensors"),
    [
        ({"layers": 256, "dim": 2**15, "heads": 1, "feed_forward_dim": 2**20, "position_groups": 1}, None),
        ({"layers": 20_000}, None),
        ({"layers": 10**9}, None),
        ({"dim": 2**40, "heads": 1, "position_groups": 1}, None),
        ({"kernel": 2**40 + 1}, None),
        ({"dim": 2**20, "heads": 1, "position_groups": 1}, {"model.output_rotation": (2**40, 0)}),
        ({}, {"head.weight": (2**40, 0), "head.bias": (0,)}),
        ({}, {"head.codewords": (2**40, 0)}),
    ],
    ids=str,
)
def test_a_small_file_of_a_huge_model_costs_neither_memory_nor_time(
    encoder: dict, tensors: dict | None, tmp_path: Path
) -> None:
    arrays = {name: torch.zeros(shape) for name, shape in (tensors or {"model.x": (3,)}).items()}
    path = write(tmp_path / "x.safetensors", described(**encoder), arrays)
    assert path.stat().st_size < 4000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for read in (superbit.load, load_with_head):
        with pytest.raises(UserError):
            read(path)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_head_of_no_size_is_refused_without_memory(saved: Path) -> None:
    config, tensors, _ = checkpoint.read(saved)
    tensors = {**tensors, "head.weight": torch.zeros(2**40, 0), "head.bias": torch.zeros(0)}
    path = write(saved, {"format": 1, "config": dataclasses.asdict(config), "provenance": {}}, tensors)
    with pytest.raises(UserError, match="does not fit its own configuration: weight has shape"):
        load_with_head(path)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", ".x", "", "..", "a b", "x\n", "ü", "x" * 300])
def test_a_name_that_is_a_path_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    """The name decides where `superbit quantize` writes."""
    config, tensors, _ = checkpoint.read(saved)
    about = {"format": 1, "config": {**dataclasses.asdict(config), "name": name}, "provenance": {}}
    path = write(saved, about, tensors)
    with pytest.raises(UserError, match=r"name .* is not valid: it becomes a file name"):
        superbit.load(path)
    command = ["quantize", str(path), "--bits", "w1a1", "--manifest", "x.tsv", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(value: float, saved: Path) -> None:
    model = checkpoint.load(saved)
    with torch.no_grad():
        model.encoder.norm.weight[3] = value
    checkpoint.save(saved, model, None, {})
    with pytest.raises(UserError, match=r"model\.encoder\.norm\.weight in .* holds NaN or infinite values"):
        superbit.load(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_type(dtype: torch.dtype, saved: Path) -> None:
    config, tensors, _ = checkpoint.read(saved)
    about = {"format": 1, "config": dataclasses.asdict(config), "provenance": {}}
    name = "model.encoder.norm.weight"
    path = write(saved, about, {**tensors, name: tensors[name].to(dtype)})
    with pytest.raises(UserError, match=r"encoder\.norm\.weight has type"):
        superbit.load(path)
    path = write(saved, about, {**tensors, name: tensors[name].half()})
    assert superbit.load(path).encoder.norm.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer"),
        (b"<!doctype html>", "it is an HTML page"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_checkpoint_is_said_as_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        superbit.load(tmp_path / "x.safetensors")


@torch.no_grad()
def test_loading_assigns_the_files_weights(saved: Path) -> None:
    """No random initialisation is computed for them, and the model does not depend on the file afterwards."""
    before = torch.get_rng_state()
    model = superbit.load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad and parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    states = model(torch.ones(1, 8000))
    data = saved.read_bytes()
    with saved.open("rb+") as file:  # the same file on disk, in place
        file.write(bytes(len(data)))
    assert all(torch.equal(a, b) for a, b in zip(states, model(torch.ones(1, 8000)), strict=True))


def test_pack_and_export_never_overwrite_a_checkpoint(saved: Path) -> None:
    before = saved.read_bytes()
    for command in (["pack", str(saved), "--out", str(saved)], ["export", str(saved), "--onnx", str(saved)]):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, UserError) and "is a checkpoint, which would be overwritten" in str(
            result.exception
        )
    assert saved.read_bytes() == before


def test_the_cost_of_a_model_is_computed_without_its_memory(saved: Path) -> None:
    assert registry.describe("superbit_local", saved)["parameters"] > 0
    huge = dataclasses.replace(TINY, encoder=dataclasses.replace(TINY.encoder, dim=2**15, feed_forward_dim=2**20))
    assert all(tensor.is_meta for tensor in checkpoint.skeleton(huge).encoder.parameters())
