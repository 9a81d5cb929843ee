"""The convolution modules of Conformer (arXiv 2005.08100) and Squeezeformer (arXiv 2206.00888)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConvolution(nn.Module):
    """One filter a channel along the frames, centred; with stride 2, ceil(frames / 2) of them.

    It runs as a 2-D convolution in channels_last, which PyTorch's CPU kernels do many times faster than the same 1-D
    one.
    """

    def __init__(self, dim: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, (kernel, 1), stride=(stride, 1), padding=(kernel // 2, 0), groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim), zero where padded -> (batch, ceil(frames / stride), dim)."""
        # (batch, frames, dim) seen as (batch, dim, frames, 1) is already channels_last in memory.
        return self.convolution(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over valid frames only: padding touches neither the statistics nor their count."""

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, frames, dim), (batch, frames, 1) True where padded -> (batch, frames, dim)."""
        if not self.training:
            return nn.functional.batch_norm(
                x.flatten(0, 1), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            ).view_as(x)
        valid = ~padded.squeeze(-1)
        return torch.zeros_like(x).masked_scatter(valid[..., None], super().forward(x[valid]))


class ConvolutionModule(nn.Module):
    """Pointwise, depthwise, BatchNorm, Swish, pointwise.

    gated: Conformer's, where the first pointwise layer's 2 * dim channels are halved by a GLU; otherwise
    Squeezeformer's, where Swish follows it and all 2 * dim channels go on.
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
        """(batch, frames, dim), (batch, frames, 1) True where padded -> (batch, frames, dim)."""
        # The depthwise filters see what lies behind an utterance's end: there must be nothing.
        x = self.gate(self.expand(x)).masked_fill(padded, 0.0)
        return self.contract(self.activation(self.norm(self.depthwise(x), padded)))
