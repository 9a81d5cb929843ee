"""Quantizers, forward and backward as their papers' formulas have them.

One bit: BiT (arXiv 2205.13016, sections 3.1 and 3.2). 2, 4 and 8 bits: learned step sizes (LSQ, arXiv 1902.08153).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.quantization.levels import integer_range, whole_numbers

FLOOR = 1e-5  # a learned scale stays positive
CANDIDATES = 48  # scales among which the squared error chooses
SAMPLE = 1 << 18  # values that are looked at for that


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1: two levels, never a third."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class BinarizeWeight(torch.autograd.Function):
    """m sign(W - mean W) with m = mean |W|, over the tensor or each output channel; the gradient passes through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, per_channel: bool) -> Tensor:
        magnitude, mean = _mean(weight.abs(), per_channel), _mean(weight, per_channel)
        return magnitude * sign(weight - mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _mean(weight: Tensor, per_channel: bool) -> Tensor:
    return weight.mean(dim=tuple(range(1, weight.ndim)), keepdim=True) if per_channel else weight.mean()


class BinarizeSigned(torch.autograd.Function):
    """alpha sign(x): dx where |x| <= alpha; dalpha = scale * sum g sign(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.scale = scale
        return alpha * sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, alpha = ctx.saved_tensors
        return grad * (x.abs() <= alpha), ctx.scale * (grad * sign(x)).to(alpha.dtype).sum(), None


class LearnedStep(torch.autograd.Function):
    """alpha clip(round(x / alpha), low, high), halves to even: dx where low <= x / alpha <= high.

    dalpha = scale * sum g * (high above, low below, round(x / alpha) - x / alpha between). With low 0 and high 1 it is
    BiT's {0, alpha}. alpha: one value, or one for each entry of the first dimensions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, low: int, high: int, scale: float) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        return alpha * (x / alpha).round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, alpha = ctx.saved_tensors
        ratio = x / alpha
        clipped = ratio.clamp(ctx.low, ctx.high)
        inside = clipped == ratio
        slope = torch.where(inside, ratio.round() - ratio, clipped)
        return grad * inside, ctx.scale * (grad * slope).to(alpha.dtype).sum_to_size(alpha.shape), None, None, None


class WholeNumbers(torch.autograd.Function):
    """A quantizer's output x over its scale alpha, rounded to be whole to the last bit; dx = g / alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(alpha)
        return (x / alpha).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.saved_tensors[0], None


def least_error_scale(x: Tensor, low: int, high: int) -> Tensor:
    """The scale of least squared error for each row of x (rows, values) -> (rows,), at least FLOOR.

    Looked for between the scale that clips nothing and a fiftieth of it, on a fixed sample where there are many values.
    """
    widest = torch.maximum(x.amax(1) / high, x.amin(1) / low if low else x.amax(1) / high).clamp_min(FLOOR)
    if x.shape[1] > SAMPLE:
        chosen = torch.randint(x.shape[1], (SAMPLE,), generator=torch.Generator().manual_seed(0))
        x = x[:, chosen.to(x.device)]
    best, least = widest, torch.full_like(widest, float("inf"))
    for fraction in torch.linspace(1.0, 0.02, CANDIDATES).tolist():
        alpha = (widest * fraction).clamp_min(FLOOR)[:, None]
        error = (alpha * (x / alpha).round().clamp(low, high) - x).square().sum(1)
        best = torch.where(error < least, alpha[:, 0], best)
        least = torch.minimum(error, least)
    return best


class Quantizer(nn.Module):
    """What quantizers with a learned scale share: alpha > 0, and whether it was calibrated, in a buffer.

    rows: shape of alpha; count: elements one scale stands for, which sets its gradient's scale, 1 / sqrt(count Qp).
    """

    calibrated: Tensor

    def __init__(self, bits: int, signed: bool, count: int, rows: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.low, self.high = integer_range(bits, signed)
        self.positive = 1 if bits == 1 else self.high  # Qp
        self.alpha = nn.Parameter(torch.ones(rows))
        self.gradient_scale = 1 / math.sqrt(count * self.positive)
        self.register_buffer("calibrated", torch.tensor(False))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set alpha from values without padding, whose first dimensions are alpha's.

        8 bits: by least squared error. Fewer: 2 mean |x| / sqrt(Qp) signed and 4 mean |x| / sqrt(Qp) unsigned.
        """
        if self.bits == 8:
            alpha = least_error_scale(x.flatten(1) if self.alpha.ndim else x.reshape(1, -1), self.low, self.high)
        else:
            mean = x.abs().flatten(1).mean(1) if self.alpha.ndim else x.abs().mean()
            alpha = (2.0 if self.signed else 4.0) / math.sqrt(self.positive) * mean.clamp_min(FLOOR)
        self.alpha.copy_(alpha.reshape(self.alpha.shape))
        self.calibrated.fill_(True)

    @property
    def scale(self) -> Tensor:
        """The positive step between neighbouring whole numbers."""
        return self.alpha.clamp_min(FLOOR)


class ActivationQuantizer(Quantizer):
    """Activations of `channels` in 1, 2, 4 or 8 bits, with one learned scale.

    1 bit: {-alpha, +alpha}, or {0, alpha} where x >= 0 (signed=False). More: alpha times whole numbers. shift: before
    that a learned shift a channel, as BiT has it where there are two levels and no zero.
    """

    def __init__(self, channels: int, bits: int, signed: bool, shift: bool = False) -> None:
        # LSQ counts all elements; one frame's alone keep the batch's shape out of the gradient.
        super().__init__(bits, signed, channels)
        self.beta = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the channels last -> the same shape, quantized."""
        if self.beta is not None:
            x = x + self.beta
        if self.bits == 1 and self.signed:
            return BinarizeSigned.apply(x, self.scale, self.gradient_scale)
        return LearnedStep.apply(x, self.scale, self.low, self.high, self.gradient_scale)


class WeightQuantizer(Quantizer):
    """Weights in 2, 4 or 8 bits with learned scales: one for the tensor or, per_channel, one an output channel."""

    def __init__(self, shape: Sequence[int], bits: int, per_channel: bool) -> None:
        rows = (shape[0], *(1 for _ in shape[1:])) if per_channel else ()
        super().__init__(bits, True, math.prod(shape[1:]) if per_channel else math.prod(shape), rows)

    def forward(self, weight: Tensor) -> Tensor:
        """Weights (outputs, ...) -> the same shape, quantized."""
        return LearnedStep.apply(weight, self.scale, self.low, self.high, self.gradient_scale)

    def whole_numbers(self, weight: Tensor) -> Tensor:
        """Return the whole numbers of which the quantized weights are `scale` times, in the shape of `weight`."""
        return whole_numbers(weight, self.bits, True, self.scale.detach(), torch)


class WeightBinarizer(nn.Module):
    """BiT's 1-bit weights, for the whole tensor or, per_channel, for each output channel. It learns nothing."""

    def __init__(self, per_channel: bool) -> None:
        super().__init__()
        self.bits = 1
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Weights (outputs, ...) -> the same shape with two levels."""
        return BinarizeWeight.apply(weight, self.per_channel)

    def positive(self, weight: Tensor) -> Tensor:
        """Which weights count as +1, bool."""
        return weight >= _mean(weight, self.per_channel)
