"""Quantized models for the tests of packed models."""

from __future__ import annotations

import dataclasses

import torch

from upstreams.config import ModelConfig, QuantizationConfig, preset
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.packed import kernels
from upstreams.packed.native import LEVELS
from upstreams.quantization.convert import calibrate

# False if the package was built without a compiler, or if SUPERBIT_KERNEL selects numba or torch.
HAS_NATIVE = kernels.chosen() in LEVELS


def noise(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def quantized(config: ModelConfig | str, bits: str, overrides: dict[str, str] | None = None) -> AudioEncoder:
    """Return a randomly initialised model with calibrated scales, and random shifts, biases and output map."""
    config = preset(config) if isinstance(config, str) else config
    scale = "channel" if bits == "w2a4" else "tensor"
    quantization = QuantizationConfig(overrides or {}, weight_scale=scale)
    torch.manual_seed(0)
    model = checkpoint.build(dataclasses.replace(config, bits=bits, quantization=quantization)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".beta", ".bias")):
                parameter.normal_(std=0.1)
        waveforms = noise(2, 32_000)
        calibrate(model, waveforms, torch.tensor([32_000, 32_000]))
        model.fit_output([(waveforms, torch.tensor([32_000, 32_000]))])
    return model
