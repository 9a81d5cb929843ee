"""Packed models whose tensors, threads or arguments change between calls."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized
from upstreams.config import EncoderConfig, ModelConfig, preset
from upstreams.errors import UserError
from upstreams.packed import convert, kernels
from upstreams.packed.library import Model
from upstreams.packed.model import PackedAudioEncoder
from upstreams.packed.runtime import Runtime

SMALL = EncoderConfig(layers=2, dim=36, heads=3, feed_forward_dim=40, position_groups=36, radius=5)
MODELS = {"sparseformer": ModelConfig("small", encoder=SMALL), "conformer": preset("conformer_mini")}

every_model = pytest.mark.parametrize("name", MODELS)


def packed_model(name: str) -> PackedAudioEncoder:
    return convert.pack(quantized(MODELS[name], "w1a1"))


def expected(model: PackedAudioEncoder, waveforms: torch.Tensor) -> torch.Tensor:
    """Return the last hidden state of a copy, which starts without anything computed before."""
    return copy.deepcopy(model)(waveforms)[-1]


def fit_output(model: PackedAudioEncoder) -> None:
    model.fit_output([(noise(1, 16_000, seed=5), torch.tensor([16_000]))])


def write_in_place(model: PackedAudioEncoder) -> None:
    with torch.no_grad():
        model.output_mean += 1
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1.5)


def replace_a_buffer(model: PackedAudioEncoder) -> None:
    layer = model.get_submodule("encoder.blocks.1.attention.output")
    layer.codes = layer.codes ^ 1  # type: ignore[assignment,operator]


def load_a_part(model: PackedAudioEncoder) -> None:
    block = model.encoder.blocks[1]
    block.load_state_dict({k: v * 2 if v.is_floating_point() else v ^ 1 for k, v in block.state_dict().items()})


def lower_precision(model: PackedAudioEncoder) -> None:
    model.half()
    model.float()


@every_model
@pytest.mark.parametrize("change", [fit_output, write_in_place, replace_a_buffer, load_a_part, lower_precision])
@torch.no_grad()
def test_a_packed_model_that_changed_computes_with_its_new_values(
    name: str, change: Callable[[PackedAudioEncoder], None]
) -> None:
    model, waveforms = packed_model(name), noise(1, 12_000)
    before = model(waveforms)[-1]
    change(model)
    after = model(waveforms)[-1]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected(model, waveforms), rtol=0, atol=0)


@torch.no_grad()
def test_fit_output_measures_a_packed_model_as_the_quantized_one() -> None:
    model = quantized(MODELS["sparseformer"], "w1a1")
    packed, waveforms = convert.pack(copy.deepcopy(model)), noise(2, 16_000, seed=1)
    packed(waveforms)
    for each in (model, packed):
        each.fit_output([(waveforms, torch.tensor([16_000, 16_000]))])
    torch.testing.assert_close(packed(waveforms)[-1], model(waveforms)[-1], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_packed_model_loaded_in_inference_mode_runs(tmp_path: Path) -> None:
    convert.save(tmp_path / "packed.safetensors", packed_model("sparseformer"), {})
    with torch.inference_mode():
        model = convert.load(tmp_path / "packed.safetensors")
        first = model(noise(1, 8_000))[-1]
    assert torch.equal(model(noise(1, 8_000))[-1], first)


@pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")
@torch.no_grad()
def test_another_number_of_threads_or_kernel_keeps_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, waveforms, built = packed_model("sparseformer"), noise(1, 12_000), []
    make = Model.__init__

    def counted(self: Model, packed: Path | bytes) -> None:
        built.append(self)
        make(self, packed)

    monkeypatch.setattr(Model, "__init__", counted)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            model(waveforms)
    finally:
        torch.set_num_threads(threads)
    for kernel in kernels.available():
        monkeypatch.setenv(kernels.VARIABLE, kernel)
        model(waveforms)
    assert len(built) == 1


@pytest.mark.parametrize("layers", [99, -1, 3, True, 1.0, "1"])
@torch.no_grad()
def test_a_number_of_layers_that_the_model_does_not_have_is_refused(layers: object, tmp_path: Path) -> None:
    quantized_model = quantized(MODELS["sparseformer"], "w1a1")
    packed = convert.pack(copy.deepcopy(quantized_model))
    convert.save(tmp_path / "packed.safetensors", packed, {})
    conformer = packed_model("conformer")
    layers = layers if layers != 3 else MODELS["conformer"].encoder.layers + 1
    for model in (quantized_model, packed, conformer):
        with pytest.raises(UserError, match=r"layers is .*, but must be None or 0 to"):
            model(noise(1, 8_000), None, layers)  # type: ignore[arg-type]
        assert [len(model(noise(1, 8_000), None, count)) for count in (0, 1, 2, None)][:3] == [1, 2, 3]
    if HAS_NATIVE:
        with pytest.raises(UserError, match="layers is"):
            Runtime(tmp_path / "packed.safetensors")(np.zeros(800, np.float32), layers)  # type: ignore[arg-type]


@pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")
@torch.no_grad()
def test_a_huge_radius_is_full_attention(tmp_path: Path) -> None:
    states = []
    for radius in (400, 2**20):
        for positions in ("rotary", "relative"):
            encoder = dataclasses.replace(SMALL, positions=positions, radius=400)
            model = quantized(ModelConfig("wide", encoder=encoder), "w1a1")
            packed = convert.pack(model)
            packed.config = dataclasses.replace(packed.config, encoder=dataclasses.replace(encoder, radius=radius))
            convert.save(tmp_path / "packed.safetensors", packed, {})
            states.append(Runtime(tmp_path / "packed.safetensors")(noise(1, 16_000)[0].numpy())[-1])
    np.testing.assert_array_equal(states[0], states[2])
    np.testing.assert_array_equal(states[1], states[3])


@pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")
def test_impossible_threads_and_loud_audio_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    convert.save(path, packed_model("sparseformer"), {})
    for threads in (0, -1, 1.5, "2"):
        with pytest.raises(UserError, match="threads is"):
            Runtime(path, threads)  # type: ignore[arg-type]
    quiet = noise(1, 8_000)[0].numpy()
    np.testing.assert_array_equal(Runtime(path, 2**40)(quiet)[-1], Runtime(path)(quiet)[-1])
    for model in (Runtime(path), lambda x: convert.load(path)(torch.from_numpy(x))):
        with np.errstate(all="ignore"), pytest.raises(UserError, match="NaN"):
            model(quiet * np.float32(1e30))


@pytest.mark.parametrize("kernel", kernels.available())
@pytest.mark.parametrize(("name", "bits"), [("sparseformer", "w1a1"), ("sparseformer", "w1a8"), ("conformer", "w2a4")])
def test_nan_passes_no_kernel(kernel: str, name: str, bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes no bit and no whole number: not in the native kernel, nor in torch."""
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    model = convert.pack(quantized(MODELS[name], bits))
    with pytest.raises(UserError, match="NaN"):
        model(noise(2, 8_000) * 1e30)
