"""Quantizers, whose forward and backward passes follow the formulas of their papers.

1 bit: BiT (arXiv 2205.13016, sections 3.1 and 3.2). 2, 4 and 8 bits: learned step sizes (LSQ, arXiv 1902.08153).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.quantization.levels import integer_range, whole_numbers

SMALLEST_SCALE = 1e-5  # keeps a learned scale positive
CANDIDATES = 48  # number of scales that `least_error_scale` tries
SAMPLE = 1 << 18  # number of values on which it tries them


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 and -1 elsewhere: unlike torch.sign, 0 becomes +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class BinarizeWeight(torch.autograd.Function):
    """m sign(W - mean W), m = mean |W|, over the tensor or each output channel. dW is the incoming gradient."""

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
    """alpha sign(x). With the incoming gradient g: dx = g where |x| <= alpha, else 0; dalpha = scale sum g sign(x)."""

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
    """alpha clip(round(x / alpha), low, high), with halves rounded to even.

    With the incoming gradient g: dx = g where low <= x / alpha <= high, else 0. dalpha = scale sum g s, where s is
    high above the range, low below it, and round(x / alpha) - x / alpha inside. With low 0 and high 1 this is BiT's
    {0, alpha}. alpha: one value, or one for each entry of the first dimensions.
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
    """round(x / alpha) of a quantizer's output x and its scale alpha. With the incoming gradient g: dx = g / alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(alpha)
        return (x / alpha).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.saved_tensors[0], None


def least_error_scale(x: Tensor, low: int, high: int) -> Tensor:
    """Return the scale of least squared error for each row of x (rows, values): (rows,), at least SMALLEST_SCALE.

    Candidates lie between the scale that clips no value and a fiftieth of it. Long rows are sampled, always at the same
    positions.
    """
    widest = torch.maximum(x.amax(1) / high, x.amin(1) / low if low else x.amax(1) / high).clamp_min(SMALLEST_SCALE)
    if x.shape[1] > SAMPLE:
        chosen = torch.randint(x.shape[1], (SAMPLE,), generator=torch.Generator().manual_seed(0))
        x = x[:, chosen.to(x.device)]
    best, least = widest, torch.full_like(widest, float("inf"))
    for fraction in torch.linspace(1.0, 0.02, CANDIDATES).tolist():
        alpha = (widest * fraction).clamp_min(SMALLEST_SCALE)[:, None]
        error = (alpha * (x / alpha).round().clamp(low, high) - x).square().sum(1)
        best = torch.where(error < least, alpha[:, 0], best)
        least = torch.minimum(error, least)
    return best


class Quantizer(nn.Module):
    """Base of the quantizers with a learned scale alpha > 0. The buffer `calibrated` is True once alpha was set.

    shape: shape of alpha. count: number of elements that share a scale; the gradient of alpha is multiplied by
    1 / sqrt(count Qp).
    """

    calibrated: Tensor

    def __init__(self, bits: int, signed: bool, count: int, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.low, self.high = integer_range(bits, signed)
        self.qp = 1 if bits == 1 else self.high  # LSQ's Qp: the highest level
        self.alpha = nn.Parameter(torch.ones(shape))
        self.gradient_scale = 1 / math.sqrt(count * self.qp)
        self.register_buffer("calibrated", torch.tensor(False))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set alpha from values without padding, whose first dimensions are those of alpha.

        8 bits: the scale of least squared error. Fewer bits: 2 mean |x| / sqrt(Qp) if signed, otherwise 4 mean |x| /
        sqrt(Qp).
        """
        if self.bits == 8:
            alpha = least_error_scale(x.flatten(1) if self.alpha.ndim else x.reshape(1, -1), self.low, self.high)
        else:
            mean = x.abs().flatten(1).mean(1) if self.alpha.ndim else x.abs().mean()
            alpha = (2.0 if self.signed else 4.0) / math.sqrt(self.qp) * mean.clamp_min(SMALLEST_SCALE)
        self.alpha.copy_(alpha.reshape(self.alpha.shape))
        self.calibrated.fill_(True)

    @property
    def scale(self) -> Tensor:
        """The distance between neighbouring levels, which is positive.

        At SMALLEST_SCALE alpha still gets its gradient, below it none: training calls `keep_positive` after each step.
        """
        return self.alpha.clamp_min(SMALLEST_SCALE)

    @property
    def at_smallest(self) -> int:
        """How many scales are at SMALLEST_SCALE or below, where the levels hardly differ from 0."""
        return int((self.alpha.detach() <= SMALLEST_SCALE).sum())


@torch.no_grad()
def keep_positive(quantizers: Sequence[Quantizer]) -> None:
    """Raise scales below SMALLEST_SCALE to it, so that their gradients do not vanish (projection after a step)."""
    for quantizer in quantizers:
        quantizer.alpha.clamp_min_(SMALLEST_SCALE)


class ActivationQuantizer(Quantizer):
    """Quantizes activations to 1, 2, 4 or 8 bits with one learned scale alpha.

    1 bit: the levels {-alpha, +alpha}, or {0, alpha} if not signed. More bits: alpha times whole numbers. channels:
    size of the last dimension. shift: first add a learned shift beta to each channel, as BiT does for signed bits.
    """

    def __init__(self, channels: int, bits: int, signed: bool, shift: bool = False) -> None:
        # LSQ counts all elements. Counting those of one frame makes the gradient independent of the batch's shape.
        super().__init__(bits, signed, channels)
        self.beta = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize x (..., channels); return the same shape."""
        if self.beta is not None:
            x = x + self.beta
        if self.bits == 1 and self.signed:
            return BinarizeSigned.apply(x, self.scale, self.gradient_scale)
        return LearnedStep.apply(x, self.scale, self.low, self.high, self.gradient_scale)


class WeightQuantizer(Quantizer):
    """Quantizes weights to 2, 4 or 8 bits with one learned scale, or with one for each output channel (per_channel)."""

    def __init__(self, shape: Sequence[int], bits: int, per_channel: bool) -> None:
        scales = (shape[0], *(1 for _ in shape[1:])) if per_channel else ()
        super().__init__(bits, True, math.prod(shape[1:]) if per_channel else math.prod(shape), scales)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize weights (outputs, ...); return the same shape."""
        return LearnedStep.apply(weight, self.scale, self.low, self.high, self.gradient_scale)

    def whole_numbers(self, weight: Tensor) -> Tensor:
        """Return the whole numbers of which the quantized weights are `scale` times, in the shape of `weight`."""
        return whole_numbers(weight, self.bits, True, self.scale.detach(), torch)


class WeightBinarizer(nn.Module):
    """Binarizes weights as BiT, with one scale or one for each output channel (per_channel). It learns nothing."""

    def __init__(self, per_channel: bool) -> None:
        super().__init__()
        self.bits = 1
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize weights (outputs, ...); return the same shape."""
        return BinarizeWeight.apply(weight, self.per_channel)

    def positive(self, weight: Tensor) -> Tensor:
        """Return True for each weight whose sign is +1, in the shape of `weight`."""
        return weight >= _mean(weight, self.per_channel)
