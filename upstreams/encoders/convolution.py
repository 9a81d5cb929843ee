"""The convolution modules of Conformer (arXiv 2005.08100) and Squeezeformer (arXiv 2206.00888)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def convolve_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Tensor:
    """Return nn.functional.conv2d of x (batch, channels, frames, 1) with a kernel of (frames, 1), computed faster.

    A depthwise convolution runs in channels_last memory with frames along the width: there PyTorch's CPU kernels are 30
    times faster than in 1-D, and several times faster than with frames along the height. With fewer groups 1-D is
    fastest (benchmarks/encoders.py).
    """
    x, weight = x.squeeze(-1), weight.squeeze(-1)
    if groups == x.shape[1]:
        # (batch, frames, dim) seen as (batch, dim, 1, frames) is channels_last already: nothing is copied.
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        y = nn.functional.conv2d(x, weight, bias, stride[::-1], padding[::-1], groups=groups).squeeze(2)
    else:
        y = nn.functional.conv1d(x, weight, bias, stride[0], padding[0], groups=groups)
    return y.unsqueeze(-1)


class FrameConvolution(nn.Conv2d):
    """A convolution with a kernel of (frames, 1) over (batch, channels, frames, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, frames, 1) to (batch, outputs, frames, 1), fewer frames with a stride above 1."""
        stride, padding = (self.stride[0], 1), (int(self.padding[0]), 0)
        return convolve_frames(x, self.weight, self.bias, stride, padding, self.groups)


class DepthwiseConvolution(nn.Module):
    """One centred filter for each channel, along the frames."""

    def __init__(self, dim: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = FrameConvolution(
            dim, dim, (kernel, 1), stride=(stride, 1), padding=(kernel // 2, 0), groups=dim
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, frames, dim), zero where padded, to (batch, ceil(frames / stride), dim)."""
        return self.convolution(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics cover valid frames only, without padding.

    The statistics are sums over all frames with weights of 0 and 1: selecting the valid frames would make the host wait
    for their number, and would split a compiled graph.
    """

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:  # type: ignore[override]
        """Map x (batch, frames, dim), with padded (batch, frames, 1) True where padded, to (batch, frames, dim)."""
        if not self.training:
            return nn.functional.batch_norm(
                x.flatten(0, 1), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            ).view_as(x)
        single = x.to(torch.promote_types(x.dtype, torch.float32))
        y, mean, variance, count = _NormaliseValid.apply(single, padded, self.weight, self.bias, self.eps)
        self._track(mean, variance * (count / (count - 1).clamp_min(1)))
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics by `momentum` towards those of this batch; None: their mean over all batches."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            if self.momentum is None:
                running.add_((current - running) / self.num_batches_tracked)
            else:
                running.lerp_(current.to(running.dtype), self.momentum)


class _NormaliseValid(torch.autograd.Function):
    """Normalise each channel of x (batch, frames, dim) over the frames of all utterances that are not padded.

    Returns the result, zero where padded, and mean, variance (dim,) and number of these frames, without a gradient. On
    a CPU this is several times faster than PyTorch's batch normalisation of the selected frames.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, padded: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        valid = (~padded).to(x.dtype)
        count = valid.sum()
        mean = (x * valid).sum((0, 1)) / count
        centred = (x - mean).mul_(valid)
        variance = centred.square().sum((0, 1)) / count
        factor = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, valid, weight, factor, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, centred, weight * factor).mul_(valid), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centred, valid, weight, factor, count = ctx.saved_tensors
        gradient = gradient * valid
        of_bias = gradient.sum((0, 1))
        of_weight = (gradient * centred).sum((0, 1)) * factor
        scale = weight * factor
        of_x = torch.addcmul(gradient * scale - of_bias * scale / count, centred, -scale * of_weight * factor / count)
        return of_x.mul_(valid), None, of_weight, of_bias, None


class ConvolutionModule(nn.Module):
    """Pointwise, depthwise, BatchNorm, Swish, pointwise.

    gated: a GLU halves the 2 * dim channels of the first pointwise layer, as in a Conformer. Otherwise Swish follows
    that layer and the module keeps all 2 * dim channels, as in a Squeezeformer.
    """

    def __init__(self, dim: int, kernel: int, gated: bool) -> None:
        super().__init__()
        inner = dim if gated else 2 * dim
        self.expand = nn.Linear(dim, 2 * dim)
        self.gate: nn.Module = nn.GLU(-1) if gated else nn.SiLU()
        self.depthwise = DepthwiseConvolution(inner, kernel)
        self.norm = BatchNorm(inner)
        self.activation: nn.Module = nn.SiLU()
        self.contract = nn.Linear(inner, dim)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        """Map x (batch, frames, dim), with padded (batch, frames, 1) True where padded, to (batch, frames, dim)."""
        # The depthwise filters reach past the end of an utterance: the frames there must be zero.
        x = self.gate(self.expand(x)).masked_fill(padded, 0.0)
        return self.contract(self.activation(self.norm(self.depthwise(x), padded)))
