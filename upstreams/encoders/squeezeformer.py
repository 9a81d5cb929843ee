"""Squeezeformer (arXiv 2206.00888, section 3): a feed-forward after each attention and convolution; a U-Net in time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import ConvolutionModule, DepthwiseConvolution
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions
from upstreams.encoders.stack import Encoder
from upstreams.frontend import padding_mask


class ScaleAndBias(nn.Module):
    """A learned scale and bias for each channel, in place of the pre-norm (section 3.1.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return x * self.scale + self.bias


class SqueezeformerBlock(nn.Module):
    """Post-norm modules, each added to its input: attention, feed-forward, convolution, feed-forward."""

    def __init__(
        self,
        attention: Attention,
        first: FeedForward,
        convolution: ConvolutionModule,
        second: FeedForward,
        dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.first = first
        self.convolution = convolution
        self.second = second
        self.scales = nn.ModuleList(ScaleAndBias(dim) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (batch, frames, dim), with (batch,) lengths in frames, to (batch, frames, dim)."""
        padded = padding_mask(lengths, x.shape[1])[..., None]
        x = self.norms[0](x + self.dropout(self.attention(self.scales[0](x), lengths)))
        x = self.norms[1](x + self.dropout(self.first(self.scales[1](x))))
        x = self.norms[2](x + self.dropout(self.convolution(self.scales[2](x), padded)))
        return self.norms[3](x + self.dropout(self.second(self.scales[3](x))))


class Squeezeformer(Encoder):
    """An encoder whose blocks `reduce` to `recover` - 1 run at half the frame rate (section 3.1.1)."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        dim: int,
        reduce: int,
        recover: int,
        positions: ConvPositions | None = None,
        layerdrop: float = 0.0,
    ) -> None:
        super().__init__(blocks, positions, layerdrop=layerdrop)
        self.reduce_at, self.recover_at = reduce, recover
        self.reduce_depthwise = DepthwiseConvolution(dim, kernel=5, stride=2)
        self.reduce_pointwise = nn.Linear(dim, dim)
        self.recover = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor, layers: int | None = None) -> tuple[Tensor, ...]:
        """Return hidden states as `Encoder.forward`; each frame of the states at half the frame rate is repeated."""
        frames = x.shape[1]
        padded = padding_mask(lengths, frames)[..., None]
        x = self.enter(x, padded)
        states = [x]
        skip = x
        current = lengths  # at the current frame rate
        for number in range(len(self.blocks) if layers is None else layers):
            if number == self.reduce_at:
                skip, current = x, (lengths + 1) // 2
                x = self.reduce_pointwise(self.reduce_depthwise(x.masked_fill(padded, 0.0)))
            if number == self.recover_at:
                x, current = skip + self.recover(repeated(x, frames)), lengths
            x = self.run(number, x, current)
            states.append(repeated(x, frames) if self.reduce_at <= number < self.recover_at else x)
        return tuple(state.masked_fill(padded, 0.0) for state in states)


def repeated(x: Tensor, frames: int) -> Tensor:
    """Repeat each frame of x (batch, ceil(frames / 2), dim); return (batch, frames, dim)."""
    return x.repeat_interleave(2, dim=1)[:, :frames]
