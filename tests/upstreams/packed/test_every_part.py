"""Every encoder with every front-end and every kind of override, packed and run."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.upstreams.packed.every_part import COVERING, EVERY, Part
from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized
from upstreams.packed import convert, kernels
from upstreams.packed.runtime import Runtime
from upstreams.quantization.convert import kinds
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul

CASES = [*COVERING, *(pytest.param(part, marks=pytest.mark.slow) for part in EVERY if part not in COVERING)]
every_part = pytest.mark.parametrize("part", CASES, ids=str)


@every_part
@torch.no_grad()
def test_float_activations_packed_equal_the_quantized_model(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No input is quantized, so that no rounding error can cross a threshold: whole models are compared."""
    model = quantized(part.config, "w1a32", {part.kind: "w4a32"})
    waveforms, lengths = noise(2, 9_000), torch.tensor([9_000, 5_001])
    reference = model(waveforms, lengths)
    path = tmp_path / "packed.safetensors"
    convert.save(path, convert.pack(copy.deepcopy(model)), {})
    packed = convert.load(path)
    for kernel in ("torch", kernels.available()[0]):
        monkeypatch.setenv(kernels.VARIABLE, kernel)
        for ours, expected in zip(packed(waveforms, lengths), reference, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
    if HAS_NATIVE:
        ours = Runtime(path)(waveforms[0].numpy())
        for state, expected in zip(ours, reference, strict=True):
            np.testing.assert_allclose(state, expected[0], atol=1e-3, rtol=1e-3)


@every_part
@torch.no_grad()
def test_quantized_activations_packed_equal_each_quantized_module(part: Part, tmp_path: Path) -> None:
    """Module by module, each on the input of the quantized one; the loaded packed model runs and is finite."""
    model = quantized(part.config, "w1a1", {part.kind: "w8a8"})
    path = tmp_path / "packed.safetensors"
    convert.save(path, convert.pack(copy.deepcopy(model)), {})
    packed = convert.load(path)
    waveforms, lengths = noise(2, 9_000), torch.tensor([9_000, 5_001])
    seen = set()

    def compare(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            ours = packed.get_submodule(name)(*inputs)
            # A rounding error may move a whole number of 8 bits by one step.
            scale = float(output.abs().max().clamp_min(1e-9))
            assert float((ours - output).abs().max()) < 0.02 * scale, name
            seen.add(name)

        return hook

    quantized_modules = [n for n, m in model.named_modules() if isinstance(m, (QuantLinear, QuantConv1d, QuantMatmul))]
    assert part.kind in {kinds(model)[name] for name in quantized_modules}
    for name in quantized_modules:
        model.get_submodule(name).register_forward_hook(compare(name))
    expected = model(waveforms, lengths)
    assert seen == set(quantized_modules)
    states = packed(waveforms, lengths)
    assert [s.shape for s in states] == [s.shape for s in expected] and all(s.isfinite().all() for s in states)
    if HAS_NATIVE:
        assert all(np.isfinite(state).all() for state in Runtime(path)(waveforms[0].numpy()))
