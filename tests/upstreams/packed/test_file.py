"""Malformed packed files: torch's loader and the runtime reject each one with a clear message."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upstreams.packed.models import HAS_NATIVE, quantized
from upstreams.config import EncoderConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.formats.metadata import PACKED
from upstreams.packed import convert, file
from upstreams.packed.runtime import Runtime

LAYER = "encoder.blocks.0.attention.query"
LOADERS: list[Callable[[Path], object]] = [convert.load, *([Runtime] if HAS_NATIVE else [])]

every_loader = pytest.mark.parametrize("load", LOADERS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 36 weights a row: the last byte of a row has four unused bits.
    encoder = EncoderConfig(layers=1, dim=36, heads=2, feed_forward_dim=40, position_groups=36)
    path = tmp_path_factory.mktemp("packed") / "whole.safetensors"
    convert.save(path, convert.pack(quantized(ModelConfig("small", encoder=encoder), "w1a1")), {})
    return path


@every_loader
def test_a_valid_file_loads(whole: Path, load: Callable[[Path], object]) -> None:
    load(whole)


def rewritten(
    whole: Path, out: Path, change: Callable[[dict[str, np.ndarray], dict[str, file.Layer]], ModelConfig | None]
) -> Path:
    """Write a changed file with a valid checksum, as another program could write it."""
    packed = file.read(whole)
    tensors, layers = {name: array.copy() for name, array in packed.tensors.items()}, dict(packed.layers)
    config = change(tensors, layers) or packed.config
    file.write(out, config, layers, tensors, {})
    return out


def bits_set_after_the_last_weight(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.codes"][3, -1] |= 0x40


def scale_of_another_shape(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.weight_scale"] = np.ones(7, np.float32)


def too_few_codes(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.codes"] = tensors[f"{LAYER}.codes"][:, :-1].copy()


def codes_of_another_type(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.codes"] = tensors[f"{LAYER}.codes"].astype(np.float32)


def not_a_number(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.bias"][0] = np.nan


def scale_is_zero(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors["encoder.blocks.0.attention.product.probability"][...] = 0


def missing(tensors: dict[str, np.ndarray], layers: Any) -> None:
    del tensors[f"{LAYER}.bias"]


def unknown_tensor(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors["encoder.blocks.7.bias"] = np.zeros(3, np.float32)


def other_bit_width_of_a_layer(tensors: dict[str, np.ndarray], layers: dict[str, file.Layer]) -> None:
    layers[LAYER] = file.Layer(dataclasses.replace(layers[LAYER].bits, weight=2), True)


def another_width(tensors: dict[str, np.ndarray], layers: Any) -> ModelConfig:
    encoder = EncoderConfig(layers=1, dim=72, heads=2, feed_forward_dim=40, position_groups=36)
    return ModelConfig("small", encoder=encoder, bits="w1a1")


CHANGES = {
    bits_set_after_the_last_weight: "bits set after the last of the 36 weights",
    scale_of_another_shape: r"weight_scale .* float32 \(7,\)",
    too_few_codes: r"codes .* uint8 \(36, 4\), but .* uint8 \(36, 5\)",
    codes_of_another_type: "codes .* float32",
    not_a_number: "bias .* NaN",
    scale_is_zero: "product.probability .* a scale must be positive",
    missing: "lacks .*query.bias",
    unknown_tensor: "blocks.7.bias, which its configuration does not have",
    other_bit_width_of_a_layer: "configuration",
    another_width: "its configuration has",
}


@every_loader
@pytest.mark.parametrize("change", CHANGES)
def test_contents_that_do_not_fit_the_configuration(
    whole: Path, load: Callable[[Path], object], change: Callable[..., Any], tmp_path: Path
) -> None:
    path = rewritten(whole, tmp_path / "changed.safetensors", change)
    with pytest.raises(UserError, match=CHANGES[change]):
        load(path)


def with_header(whole: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    data = whole.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    out.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return out


def huge_shape(header: dict[str, Any]) -> None:
    header[f"{LAYER}.codes"]["shape"] = [2**62, 2**62]


def wrapping_shape(header: dict[str, Any]) -> None:
    header[f"{LAYER}.codes"]["shape"] = [2**32, 2**32]  # 2^64 bytes, 0 in 64 bits
    header[f"{LAYER}.codes"]["data_offsets"][1] = header[f"{LAYER}.codes"]["data_offsets"][0]


def negative_offset(header: dict[str, Any]) -> None:
    header[f"{LAYER}.codes"]["data_offsets"] = [-180, 0]


def after_the_end(header: dict[str, Any]) -> None:
    offsets = header[f"{LAYER}.codes"]["data_offsets"]
    header[f"{LAYER}.codes"]["data_offsets"] = [offset + 10**9 for offset in offsets]


def overlapping(header: dict[str, Any]) -> None:
    header[f"{LAYER}.bias"]["data_offsets"] = header[f"{LAYER}.beta"]["data_offsets"]


def fractional(header: dict[str, Any]) -> None:
    header[f"{LAYER}.codes"]["shape"] = [36, 5.0]


def no_metadata(header: dict[str, Any]) -> None:
    header["__metadata__"] = {PACKED: "[]"}


def a_list(header: dict[str, Any]) -> Any:
    return {"__metadata__": header["__metadata__"], LAYER: [1, 2]}


@every_loader
@pytest.mark.parametrize(
    "change",
    [huge_shape, wrapping_shape, negative_offset, after_the_end, overlapping, fractional, no_metadata, a_list],
)
def test_invalid_headers(
    whole: Path, load: Callable[[Path], object], change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    path = with_header(whole, tmp_path / "changed.safetensors", change)
    with pytest.raises(UserError, match=r"changed\.safetensors"):
        load(path)


@pytest.mark.parametrize("load", LOADERS[1:])
def test_every_truncation_is_rejected(whole: Path, load: Callable[[Path], object], tmp_path: Path) -> None:
    data, path = whole.read_bytes(), tmp_path / "cut.safetensors"
    for length in [*range(0, 64, 5), *range(64, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(UserError, match="damaged"):
        load(path)
    path.write_bytes((2**63).to_bytes(8, "little") + data[8:])
    with pytest.raises(UserError, match="damaged"):
        load(path)


@every_loader
def test_a_changed_bit_is_detected(whole: Path, load: Callable[[Path], object], tmp_path: Path) -> None:
    data, path = bytearray(whole.read_bytes()), tmp_path / "changed.safetensors"
    data[-9] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="was altered"):
        load(path)
