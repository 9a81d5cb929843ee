"""Positions that a convolution supplies (wav2vec 2.0, arXiv 2006.11477; HuBERT keeps them)."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ConvPositions(nn.Module):
    """A grouped convolution over frames with GELU, to be added to its input.

    With one group a channel it runs as a 2-D convolution in channels_last, which PyTorch's CPU kernels do many times
    faster than the same 1-D one.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.groups = groups
        self.convolution = nn.Conv2d(dim, dim, (kernel, 1), padding=(kernel // 2, 0), groups=groups)
        nn.init.normal_(self.convolution.weight, std=math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim), zero where padded -> (batch, frames, dim)."""
        # (batch, frames, dim) seen as (batch, dim, frames, 1) is already channels_last in memory.
        y = self.convolution(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return nn.functional.gelu(y[:, : x.shape[1]])
