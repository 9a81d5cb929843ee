"""Sparseformer (arXiv 2311.02772): local self-attention and feed-forward, without a convolution module.

A frame sees a sliding window of `radius` frames to either side and itself: 2 * radius + 1 keys. The window is computed
in blocks of queries against the keys around them, so that time and memory grow linearly with the number of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.positions import RelativePositions, Rotary, skew
from upstreams.encoders.transformer import TransformerBlock

# Queries of a block, which sees 2 * radius + BLOCK keys. Smaller blocks compute fewer masked scores; larger blocks are
# fewer. With a radius of 64, blocks of 32 were faster than blocks of 64 from 250 to 1500 frames on a CPU.
BLOCK = 32


def local_attention(
    product: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    radius: int,
    relative: RelativePositions | None = None,
) -> Tensor:
    """Return the context when every frame sees `radius` frames to either side and itself.

    query, key, value and result: (batch, frames, heads, head dim). lengths: (batch,) frames.
    """
    batch, frames = query.shape[:2]
    size = min(radius, BLOCK)
    blocks = (frames + size - 1) // size  # ONNX divides towards zero, where -(-frames // size) would be wrong
    padded = blocks * size
    window = size + 2 * radius

    def overlapping(x: Tensor) -> Tensor:
        """Return each block of x with `radius` frames to either side: (batch * blocks, heads, window, head dim).

        The blocks are views of the same memory. Only a batch of several utterances is copied.
        """
        x = nn.functional.pad(x, (0, 0, 0, 0, radius, padded - frames + radius))
        return x.unfold(1, window, size).flatten(0, 1).transpose(-1, -2)

    query = nn.functional.pad(query, (0, 0, 0, 0, 0, padded - frames)).unflatten(1, (blocks, size)).flatten(0, 1)
    device = query.device
    offset = torch.arange(window, device=device) - radius - torch.arange(size, device=device)[:, None]
    band = offset.abs() <= radius  # (size, window)
    position = torch.arange(blocks, device=device)[:, None] * size + torch.arange(-radius, size + radius, device=device)
    inside = (position >= 0) & (position < lengths[:, None, None])  # (batch, blocks, window)
    # A padded query sees itself, because a softmax over no key is NaN. Its output is masked later.
    visible = ((band & inside[:, :, None, :]) | (offset == 0)).flatten(0, 1)[:, None]
    bias = None
    if relative is not None:
        bias = skew(relative(query, radius), window)  # key j of a block lies at offset j - i - radius
        query = relative.content(query)
    output = product(query.transpose(1, 2), overlapping(key), overlapping(value), visible, bias)
    return output.transpose(1, 2).reshape(batch, padded, *output.shape[1::2])[:, :frames]


class LocalAttention(Attention):
    """Multi-head self-attention in which a frame sees `radius` frames to either side and itself."""

    radius: int

    def __init__(self, dim: int, heads: int, radius: int, positions: RelativePositions | Rotary | None = None) -> None:
        super().__init__(dim, heads, positions)
        self.radius = radius

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, relative: RelativePositions | None
    ) -> Tensor:
        """Return the context of every frame. Shapes as in `local_attention`."""
        return local_attention(self.product, query, key, value, lengths, self.radius, relative)


class SparseformerBlock(TransformerBlock):
    """A Transformer block with local attention, pre-norm or post-norm."""

    attention: LocalAttention
