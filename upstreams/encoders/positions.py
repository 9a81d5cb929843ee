"""Position encodings: a convolution, relative offsets in the scores, or rotation of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upstreams.encoders.convolution import FrameConvolution


class ConvPositions(nn.Module):
    """A grouped convolution over frames with GELU; the encoder adds it to its input (wav2vec 2.0, arXiv 2006.11477)."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.convolution = FrameConvolution(dim, dim, (kernel, 1), padding=(kernel // 2, 0), groups=groups)
        nn.init.normal_(self.convolution.weight, std=math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, frames, dim), zero where padded, to (batch, frames, dim)."""
        y = self.convolution(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        return nn.functional.gelu(y[:, : x.shape[1]])  # an even kernel gives one frame too many


class RelativePositions(nn.Module):
    """Relative positions of Transformer-XL (arXiv 1901.02860, section 3.3), used by Conformer and Squeezeformer.

    scores = (query + u) . key + (query + v) . (W r), where r is the sinusoid of the offset from query to key.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(dim))  # u
        self.position_bias = nn.Parameter(torch.zeros(dim))  # v

    def content(self, query: Tensor) -> Tensor:
        """Return query + u (..., heads, head dim)."""
        return query + self.content_bias.unflatten(0, (self.heads, -1))

    def forward(self, query: Tensor, reach: int) -> Tensor:
        """Return the positions' scores (..., heads, frames, 2 * reach + 1) of the offsets -reach to reach.

        query: (..., frames, heads, head dim). The scores are scaled by 1 / sqrt(head dim), like those of the content.
        """
        offsets = torch.arange(-reach, reach + 1, device=query.device)
        # Vaswani et al. (arXiv 1706.03762, section 3.5): sine and cosine in pairs. Positive is to the left.
        dim = len(self.position_bias)
        rates = torch.exp(torch.arange(0, dim, 2, device=query.device) * (-math.log(10_000.0) / dim))
        angles = -offsets[:, None] * rates
        sinusoids = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim].to(query.dtype)
        keys = self.projection(sinusoids).unflatten(-1, (self.heads, -1))  # (offsets, heads, head dim)
        query = query + self.position_bias.unflatten(0, (self.heads, -1))
        return query.transpose(-3, -2) @ keys.permute(1, 2, 0) / math.sqrt(query.shape[-1])

    def macs(self, query: Tensor, reach: int) -> int:
        """Return the multiply-accumulates of the scores, without those of the projection."""
        return query.numel() * (2 * reach + 1)


def skew(scores: Tensor, keys: int) -> Tensor:
    """Return scores (..., queries, keys) whose entry (i, j) is entry (i, j - i) of scores (..., queries, offsets).

    Entries outside the offsets hold scores of other rows or zeros; the caller masks them.
    """
    queries, offsets = scores.shape[-2:]
    width = max(keys + 1, offsets)  # in rows of width - 1, row i starts i places further left
    scores = nn.functional.pad(scores, (0, width - offsets)).flatten(-2)
    return scores[..., : queries * (width - 1)].unflatten(-1, (queries, width - 1))[..., :keys]


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv 2104.09864): rotate pairs of channels by an angle that grows with the frame."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, frames, heads, head dim) to the same shape."""
        half = x.shape[-1] // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000.0) / half))
        angles = torch.arange(x.shape[1], device=x.device)[:, None, None] * rates
        cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
