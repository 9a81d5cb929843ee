"""What is logged of a quantized model while it is trained: its scales, and how many weights change their sign."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from upstreams.model import AudioEncoder
from upstreams.quantization.convert import kinds
from upstreams.quantization.modules import QuantConv1d, QuantLinear
from upstreams.quantization.quantizers import Quantizer, WeightBinarizer


def scales(model: AudioEncoder) -> dict[str, Tensor]:
    """scale/<module> of every quantizer; the mean where it has one for each channel."""
    return {
        f"scale/{name}": module.alpha.detach().mean()
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
    }


class SignFlips:
    """The fraction of 1-bit weights whose sign differs from that at the call before, for each kind of module.

    Called after every step, it tells weights that have settled from weights that swing about their threshold.
    """

    def __init__(self, model: AudioEncoder) -> None:
        self.binary: list[tuple[str, QuantLinear | QuantConv1d, WeightBinarizer]] = []
        for name, kind in kinds(model).items():
            module = model.get_submodule(name)
            if isinstance(module, (QuantLinear, QuantConv1d)) and isinstance(module.weight_quantizer, WeightBinarizer):
                self.binary.append((kind, module, module.weight_quantizer))
        self.before: list[Tensor] = []

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """sign_flips/<kind>, scalars; nothing at the first call."""
        now = [quantizer.positive(module.weight) for _, module, quantizer in self.binary]
        flipped: dict[str, list[Tensor]] = defaultdict(list)
        for (kind, _, _), old, new in zip(self.binary, self.before, now, strict=False):
            flipped[kind].append((old != new).flatten())
        self.before = now
        return {f"sign_flips/{kind}": torch.cat(parts).float().mean() for kind, parts in flipped.items()}
