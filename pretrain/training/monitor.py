"""Logged values of a quantized model in training: its scales, and how many 1-bit weights change their sign."""

from __future__ import annotations

import logging
from collections import defaultdict

import torch
from torch import Tensor

from upstreams.model import AudioEncoder
from upstreams.quantization.convert import kinds
from upstreams.quantization.modules import QuantConv1d, QuantLinear
from upstreams.quantization.quantizers import SMALLEST_SCALE, Quantizer, WeightBinarizer

_log = logging.getLogger(__name__)


def scales(model: AudioEncoder) -> dict[str, Tensor]:
    """Return scale/<module> of every quantizer; the mean over channels if it has one scale for each channel."""
    return {
        f"scale/{name}": module.alpha.detach().mean()
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
    }


def warn_of_smallest_scales(model: AudioEncoder, title: str) -> None:
    """Warn of each quantizer that training left with scales at the smallest value: its levels are nearly 0."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and module.at_smallest:
            _log.warning(
                "%s: %d of %d scales of %s ended at the smallest value, %g; a lower scale_lr may keep them",
                title,
                module.at_smallest,
                module.alpha.numel(),
                name,
                SMALLEST_SCALE,
            )


class SignFlips:
    """Fraction of 1-bit weights whose sign differs from that at the previous call, for each kind of module.

    Called after every step, it tells settled weights from weights that oscillate about their threshold.
    """

    def __init__(self, model: AudioEncoder) -> None:
        self.binary: list[tuple[str, QuantLinear | QuantConv1d, WeightBinarizer]] = []
        for name, kind in kinds(model).items():
            module = model.get_submodule(name)
            if isinstance(module, (QuantLinear, QuantConv1d)) and isinstance(module.weight_quantizer, WeightBinarizer):
                self.binary.append((kind, module, module.weight_quantizer))
        self.previous: list[Tensor] = []

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """Return sign_flips/<kind>, scalars; an empty dictionary at the first call."""
        current = [quantizer.positive(module.weight) for _, module, quantizer in self.binary]
        flipped: dict[str, list[Tensor]] = defaultdict(list)
        for (kind, _, _), old, new in zip(self.binary, self.previous, current, strict=False):
            flipped[kind].append((old != new).flatten())
        self.previous = current
        return {f"sign_flips/{kind}": torch.cat(parts).float().mean() for kind, parts in flipped.items()}
