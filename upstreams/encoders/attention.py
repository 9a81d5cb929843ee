"""Self-attention over all frames or over a local window; the product itself is an exchangeable part.

The window is a sliding one: a frame sees `radius` frames to either side and itself, 2 * radius + 1 keys. It is computed
in blocks of `radius` queries against the 3 * radius keys around them, so cost and memory grow linearly with length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledDotProduct(nn.Module):
    """softmax(Q K^T / sqrt(head dim)) V, in floating point."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """query (n, heads, q, d), key, value (n, heads, k, d), visible (n, 1, 1 or q, k) bool -> like query."""
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)


def full_attention(product: nn.Module, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """Every frame sees every frame of its utterance. All (batch, heads, frames, d); lengths (batch,) frames."""
    frames = torch.arange(query.shape[2], device=query.device)
    visible = (frames < lengths[:, None])[:, None, None, :]
    return product(query, key, value, visible)


def local_attention(
    product: nn.Module, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, radius: int
) -> Tensor:
    """Every frame sees `radius` frames to either side, in blocks. Shapes as in `full_attention`."""
    batch, heads, frames, dim = query.shape
    blocks = -(-frames // radius)
    padded = blocks * radius
    # (batch, heads, blocks * radius, d) -> (batch * blocks, heads, radius, d)
    query = nn.functional.pad(query, (0, 0, 0, padded - frames))
    query = query.reshape(batch, heads, blocks, radius, dim).transpose(1, 2).flatten(0, 1)

    def overlapping(x: Tensor) -> Tensor:
        """(batch, heads, frames, d) -> (batch * blocks, heads, 3 * radius, d): a block and its two neighbours."""
        x = nn.functional.pad(x, (0, 0, radius, padded - frames + radius))
        x = x.reshape(batch, heads, blocks + 2, radius, dim).transpose(1, 2)
        return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=3).flatten(0, 1)

    device = query.device
    offset = torch.arange(3 * radius, device=device) - radius - torch.arange(radius, device=device)[:, None]
    band = offset.abs() <= radius  # (radius, 3 * radius)
    position = torch.arange(blocks, device=device)[:, None] * radius + torch.arange(-radius, 2 * radius, device=device)
    inside = (position >= 0) & (position < lengths[:, None, None])  # (batch, blocks, 3 * radius)
    # A padded query sees itself, as a softmax over nothing is NaN; its output is masked later.
    visible = (band & inside[:, :, None, :]) | (offset == 0)
    output = product(query, overlapping(key), overlapping(value), visible.flatten(0, 1)[:, None])
    output = output.reshape(batch, blocks, heads, radius, dim).transpose(1, 2)
    return output.reshape(batch, heads, padded, dim)[:, :, :frames]


class Attention(nn.Module):
    """Multi-head self-attention; `radius` None means every frame, otherwise a sliding window of that many frames."""

    def __init__(self, dim: int, heads: int, radius: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.radius = radius
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.product: nn.Module = ScaledDotProduct()
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim), (batch,) frames -> (batch, frames, dim)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        if self.radius is None:
            context = full_attention(self.product, query, key, value, lengths)
        else:
            context = local_attention(self.product, query, key, value, lengths, self.radius)
        return self.output(context.transpose(1, 2).flatten(2))

    def product_macs(self, frames: int) -> int:
        """Multiply-accumulates of Q K^T and P V for that many frames: what is computed, masked keys included."""
        dim = self.output.in_features
        if self.radius is None:
            return 2 * frames * frames * dim
        blocks = -(-frames // self.radius)
        return 2 * blocks * self.radius * 3 * self.radius * dim
