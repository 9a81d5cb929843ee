"""The convolution modules of Conformer (arXiv 2005.08100) and Squeezeformer (arXiv 2206.00888)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    """Batch normalisation whose statistics cover valid frames only, without padding."""

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:  # type: ignore[override]
        """Map x (batch, frames, dim), with padded (batch, frames, 1) True where padded, to (batch, frames, dim)."""
        if not self.training:
            return nn.functional.batch_norm(
                x.flatten(0, 1), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            ).view_as(x)
        valid = ~padded.squeeze(-1)
        return torch.zeros_like(x).masked_scatter(valid[..., None], super().forward(x[valid]))


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
