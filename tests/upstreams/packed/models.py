"""Quantized models for the tests of packed models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from upstreams.config import ModelConfig, QuantizationConfig, preset
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.packed import convert, file, kernels
from upstreams.packed.head import Head, TrainedHead
from upstreams.packed.library import LEVELS
from upstreams.quantization.convert import calibrate
from upstreams.quantization.quantizers import ActivationQuantizer

# False if the package was built without a compiler, or if SUPERBIT_KERNEL selects torch.
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


def with_head(path: Path, out: Path, slots: dict[str, tuple[str, ...]]) -> Path:
    """Write a packed file again with a random head."""
    packed, rng = file.read(path), np.random.default_rng(0)
    head = Head("ic" if len(slots) > 1 else "ks", slots)
    tensors = {entry.name: rng.standard_normal(entry.shape).astype(np.float32) for entry in head.entries(packed.config)}
    tensors["head.gain"] = np.array(0.7, np.float32)
    convert.pack_checkpoint(path, out, TrainedHead(head, tensors, {"seed": 0}))
    return out


def margin(model: AudioEncoder, waveforms: torch.Tensor, lengths: torch.Tensor) -> float:
    """Return the least distance of a quantizer's input to a value where its level changes, in units of the input.

    Exact zeros are left out: they are padding, masked or from a ReLU, and equal in every implementation.
    """
    least = [float("inf")]

    def measure(quantizer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        x = inputs[0][inputs[0] != 0] if quantizer.beta is None else inputs[0] + quantizer.beta
        if quantizer.bits == 1 and quantizer.signed:
            distance = x.abs()
        else:
            ratio = x / quantizer.scale
            threshold = (ratio - 0.5).round().clamp(quantizer.low, quantizer.high - 1) + 0.5
            distance = (ratio - threshold).abs() * quantizer.scale
        least.append(float(distance.min()) if distance.numel() else float("inf"))

    quantizers = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    hooks = [quantizer.register_forward_pre_hook(measure) for quantizer in quantizers]
    model(waveforms, lengths)
    for hook in hooks:
        hook.remove()
    return min(least)


def calm_noise(model: AudioEncoder, lengths: torch.Tensor, least: float = 1e-6) -> torch.Tensor:
    """Return noise for which no rounding error changes a level in `model`: every margin is above `least`.

    Sums in another order differ by some 1e-7 here. On other audio such a difference may move one input of a layer by
    one level, and with it every later value of the utterance. Keep `lengths` short: seeds are tried in turn.
    """
    seeds = (noise(len(lengths), int(lengths.max()), seed) for seed in range(1000))
    return next(waveforms for waveforms in seeds if margin(model, waveforms, lengths) > least)
