"""BiT's 1-bit quantizers (arXiv 2205.13016, sections 3.1 and 3.2), forward and backward as the formulas have them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

FLOOR = 1e-5  # a learned scale stays positive


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1: two levels, never a third."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


class BinarizeWeight(torch.autograd.Function):
    """m sign(W - mean W) with m = mean |W|, over the whole tensor; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.abs().mean() * sign(weight - weight.mean())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


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
        return grad * (x.abs() <= alpha), ctx.scale * (grad * sign(x)).sum(), None


class BinarizeUnsigned(torch.autograd.Function):
    """alpha clip(round(x / alpha), 0, 1): dx where 0 <= x / alpha <= 1.

    dalpha = scale * sum g * (1 above, 0 below, round(x / alpha) - x / alpha between).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.scale = scale
        # x / alpha > 1/2 is what rounding to even says at the half.
        return alpha * (x / alpha > 0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, alpha = ctx.saved_tensors
        ratio = x / alpha
        inside = (ratio >= 0) & (ratio <= 1)
        slope = torch.where(inside, (ratio > 0.5).to(x.dtype) - ratio, (ratio > 1).to(x.dtype))
        return grad * inside, ctx.scale * (grad * slope).sum(), None


class ActivationQuantizer(nn.Module):
    """Elastic 1-bit activation: {-alpha, +alpha} with a learned shift a channel, or {0, alpha} where x >= 0.

    `calibrate` sets alpha from data once, before training: 2 mean |x| signed, 4 mean |x| unsigned.
    """

    calibrated: Tensor

    def __init__(self, channels: int, signed: bool, shift: bool) -> None:
        super().__init__()
        self.signed = signed
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(channels)) if shift else None
        # As LSQ's 1 / sqrt(elements), counted over one frame, so that the batch's shape does not enter.
        self.gradient_scale = 1 / math.sqrt(channels)
        self.register_buffer("calibrated", torch.tensor(False))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set alpha from activations without padding."""
        self.alpha.copy_((2.0 if self.signed else 4.0) * x.abs().mean().clamp_min(FLOOR))
        self.calibrated.fill_(True)

    @property
    def scale(self) -> Tensor:
        """The positive level of the output."""
        return self.alpha.clamp_min(FLOOR)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the channels last -> the same shape with two levels."""
        if self.beta is not None:
            x = x + self.beta
        binarize = BinarizeSigned if self.signed else BinarizeUnsigned
        return binarize.apply(x, self.scale, self.gradient_scale)
