"""Malformed packed files: torch's loader and the runtime reject each one with a clear message."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upstreams.packed.models import HAS_NATIVE, quantized
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig, QuantizationConfig
from upstreams.errors import UserError
from upstreams.formats.metadata import PACKED
from upstreams.packed import convert, file
from upstreams.packed.runtime import Runtime

LAYER = "encoder.blocks.0.attention.query"
SMALL = EncoderConfig(layers=1, dim=36, heads=2, feed_forward_dim=40, position_groups=36)
LOADERS: list[Callable[[Path], object]] = [convert.load, *([Runtime] if HAS_NATIVE else [])]

every_loader = pytest.mark.parametrize("load", LOADERS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 36 weights a row: the last byte of a row has four unused bits.
    path = tmp_path_factory.mktemp("packed") / "whole.safetensors"
    convert.save(path, convert.pack(quantized(ModelConfig("small", encoder=SMALL), "w1a1")), {"seed": 1})
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


def negative_scale(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.weight_scale"] -= 1


def input_of_the_other_sign(tensors: dict[str, np.ndarray], layers: dict[str, file.Layer]) -> None:
    layers[LAYER] = file.Layer(layers[LAYER].bits, False)


def a_scale_for_each_output(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors[f"{LAYER}.weight_scale"] = np.ones(36, np.float32)


def deviation_is_zero(tensors: dict[str, np.ndarray], layers: Any) -> None:
    tensors["output_std"][1, 3] = 0


def unknown_layer(tensors: dict[str, np.ndarray], layers: dict[str, file.Layer]) -> None:
    layers["encoder.\ud800"] = layers[LAYER]


def with_config(in_encoder: dict[str, Any] | None = None, **changes: Any) -> Callable[..., ModelConfig]:
    def change(tensors: dict[str, np.ndarray], layers: Any) -> ModelConfig:
        encoder = dataclasses.replace(SMALL, **in_encoder or {})
        return dataclasses.replace(ModelConfig("small", encoder=encoder, bits="w1a1"), **changes)

    return change


CHANGES = {
    bits_set_after_the_last_weight: "bits set after the last weight of a row",
    scale_of_another_shape: r"weight_scale .* float32 \(7,\)",
    too_few_codes: r"codes .* uint8 \(36, 4\), but .* uint8 \(36, 5\)",
    codes_of_another_type: "codes .* float32",
    not_a_number: "bias .* NaN",
    scale_is_zero: "product.probability holds 0.0, but must be positive",
    missing: "query.bias is missing",
    unknown_tensor: "blocks.7.bias.*, which it does not have",
    other_bit_width_of_a_layer: "query is w2a1 with signed input, but must be w1a1",
    another_width: "does not fit its configuration",
    negative_scale: "weight_scale .* must not be negative",
    input_of_the_other_sign: "non-negative input, but must be w1a1 with signed",
    a_scale_for_each_output: r"weight_scale is float32 \(36,\), but must be float32 \(\)",
    deviation_is_zero: "output_std holds 0.0, but must be positive",
    unknown_layer: r"ud800.*, which it does not have",
    with_config(bits="w2a8"): "must be w2a8",
    with_config(bits="w32a32"): "query.weight is missing|is not quantized",
    with_config(bits="w32a8"): "quantized weights",
    with_config(quantization=QuantizationConfig({"depthwise": "w1a1"})): "depthwise' matches no module",
    with_config(quantization=QuantizationConfig({"*.query": "w8a1"})): "must be w8a1",
    with_config(quantization=QuantizationConfig({f"{n}*": "w1a1" for n in range(1001)})): "over 1000 overrides",
    # A terabyte of weights, or thousands of tensors: the first difference is the message.
    with_config({"dim": 2**20, "position_groups": 2**20, "feed_forward_dim": 2**20}): "but must be float32",
    with_config({"layers": 256}): "blocks.1.attention.query is not quantized, but must be w1a1",
    with_config(front_end=FrontEndConfig(mels=257)): "but must be float32",
}


@every_loader
@pytest.mark.parametrize("change", CHANGES)
def test_contents_that_do_not_fit_the_configuration(
    whole: Path, load: Callable[[Path], object], change: Callable[..., Any], tmp_path: Path
) -> None:
    path = rewritten(whole, tmp_path / "changed.safetensors", change)
    started = time.process_time()
    with pytest.raises(UserError, match=CHANGES[change]):
        load(path)
    assert time.process_time() - started < 1


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
