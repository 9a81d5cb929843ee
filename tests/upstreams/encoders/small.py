"""Encoders and models of every kind, small enough for tests."""

from __future__ import annotations

import torch
from torch import nn

from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.model import AudioEncoder

SMALL = {"layers": 4, "dim": 16, "heads": 2, "feed_forward_dim": 32, "kernel": 5, "position_kernel": 4}
KINDS = {
    "transformer": {},
    "sparseformer": {"radius": 3},
    "conformer": {},
    "squeezeformer": {"reduce": 1, "recover": 3},
}
FRONT_ENDS = {
    "stack at 40 ms": FrontEndConfig(),
    "stack at 20 ms": FrontEndConfig(subsampling=2),
    "convolution at 40 ms": FrontEndConfig(stem="convolution", width=8),
    "convolution at 20 ms": FrontEndConfig(stem="convolution", width=8, subsampling=2, normalisation="utterance"),
    "waveform": FrontEndConfig(kind="waveform", normalisation="none", width=16),
    "normalised waveform": FrontEndConfig(kind="waveform", normalisation="utterance", width=16, feature_norm="layer"),
}


def small(kind: str, **changes: object) -> EncoderConfig:
    values = {"kind": kind, **SMALL, "position_groups": 2, **KINDS[kind], **changes}
    return EncoderConfig(**values)  # type: ignore[arg-type]


def randomise(module: nn.Module) -> None:
    """Set all parameters and running statistics to random values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


def small_model(kind: str, front_end: str, **changes: object) -> AudioEncoder:
    return AudioEncoder(ModelConfig("small", FRONT_ENDS[front_end], small(kind, **changes), output_map=False))
