"""Self-attention over all frames or over a local window; the product itself is an exchangeable part.

The window is a sliding one: a frame sees `radius` frames to either side and itself, 2 * radius + 1 keys. It is computed
in blocks of queries against the keys around them, so cost and memory grow linearly with length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.encoders.positions import RelativePositions, Rotary, skew

# Queries of one block. They see 2 * radius + BLOCK keys, so that smaller blocks compute less that is masked and larger
# ones are fewer; with a radius of 64, blocks of 32 were faster than of 64 from 250 to 1500 frames on a CPU.
BLOCK = 32


class ScaledDotProduct(nn.Module):
    """softmax(Q K^T / sqrt(head dim) + bias) V, in floating point."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """query (n, heads, q, d), key, value (n, heads, k, d), visible (n, 1, 1 or q, k) bool -> like query.

        bias: (n, heads, q, k), added to the scores.
        """
        mask = visible if bias is None else bias.masked_fill(~visible, float("-inf"))
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def full_attention(
    product: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    relative: RelativePositions | None = None,
) -> Tensor:
    """Every frame sees every frame of its utterance. All (batch, frames, heads, d); lengths (batch,) frames."""
    count = query.shape[1]
    visible = (torch.arange(count, device=query.device) < lengths[:, None])[:, None, None, :]
    bias = None
    if relative is not None:
        # Entry (i, j) is the offset j - i, number j - i + count - 1 of those from -(count - 1) on.
        bias = skew(relative(query, count - 1), 2 * count - 1)[..., count - 1 :]
        query = relative.content(query)
    output = product(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), visible, bias)
    return output.transpose(1, 2)


def local_attention(
    product: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    radius: int,
    relative: RelativePositions | None = None,
) -> Tensor:
    """Every frame sees `radius` frames to either side, in blocks. Shapes as in `full_attention`."""
    batch, frames = query.shape[:2]
    size = min(radius, BLOCK)
    blocks = (frames + size - 1) // size  # ONNX divides towards zero, where -(-frames // size) would be wrong
    padded = blocks * size
    window = size + 2 * radius

    def overlapping(x: Tensor) -> Tensor:
        """(batch, frames, heads, d) -> (batch * blocks, heads, window, d): a block with `radius` frames around it.

        Blocks share memory; only a batch of several utterances is copied.
        """
        x = nn.functional.pad(x, (0, 0, 0, 0, radius, padded - frames + radius))
        return x.unfold(1, window, size).flatten(0, 1).transpose(-1, -2)

    query = nn.functional.pad(query, (0, 0, 0, 0, 0, padded - frames)).unflatten(1, (blocks, size)).flatten(0, 1)
    device = query.device
    offset = torch.arange(window, device=device) - radius - torch.arange(size, device=device)[:, None]
    band = offset.abs() <= radius  # (size, window)
    position = torch.arange(blocks, device=device)[:, None] * size + torch.arange(-radius, size + radius, device=device)
    inside = (position >= 0) & (position < lengths[:, None, None])  # (batch, blocks, window)
    # A padded query sees itself, as a softmax over nothing is NaN; its output is masked later.
    visible = ((band & inside[:, :, None, :]) | (offset == 0)).flatten(0, 1)[:, None]
    bias = None
    if relative is not None:
        bias = skew(relative(query, radius), window)  # key j of a block lies at offset j - i - radius
        query = relative.content(query)
    output = product(query.transpose(1, 2), overlapping(key), overlapping(value), visible, bias)
    return output.transpose(1, 2).reshape(batch, padded, *output.shape[1::2])[:, :frames]


class Attention(nn.Module):
    """Multi-head self-attention; `radius` None means every frame, otherwise a sliding window of that many frames.

    positions: relative or rotary ones, None when they come from elsewhere.
    """

    def __init__(
        self, dim: int, heads: int, radius: int | None = None, positions: RelativePositions | Rotary | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.radius = radius
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.positions = positions
        self.product: nn.Module = ScaledDotProduct()
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim), (batch,) frames -> (batch, frames, dim)."""
        query, key, value = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.query, self.key, self.value))
        if isinstance(self.positions, Rotary):
            query, key = self.positions(query), self.positions(key)
        relative = self.positions if isinstance(self.positions, RelativePositions) else None
        if self.radius is None:
            context = full_attention(self.product, query, key, value, lengths, relative)
        else:
            context = local_attention(self.product, query, key, value, lengths, self.radius, relative)
        return self.output(context.flatten(2))
