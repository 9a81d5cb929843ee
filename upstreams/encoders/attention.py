"""Multi-head self-attention over all frames of an utterance; its product is an exchangeable module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.encoders.positions import RelativePositions, Rotary, skew


class ScaledDotProduct(nn.Module):
    """softmax(Q K^T / sqrt(head dim) + bias) V in floating point."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the context, shaped like query.

        query: (n, heads, queries, head dim). key, value: (n, heads, keys, head dim). visible: (n, 1, 1 or queries,
        keys) bool, True where a query sees a key. bias: (n, heads, queries, keys), added to the scores.
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
    """Return the context when every frame sees all frames of its utterance.

    query, key, value and result: (batch, frames, heads, head dim). lengths: (batch,) frames.
    """
    count = query.shape[1]
    visible = (torch.arange(count, device=query.device) < lengths[:, None])[:, None, None, :]
    bias = None
    if relative is not None:
        # Offsets run from -(count - 1) to count - 1: offset j - i of entry (i, j) is number j - i + count - 1 of them.
        bias = skew(relative(query, count - 1), 2 * count - 1)[..., count - 1 :]
        query = relative.content(query)
    output = product(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), visible, bias)
    return output.transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention in which a frame sees all frames of its utterance.

    positions: relative or rotary positions; None if the input already holds positions, or if there are none.
    """

    radius: int | None = None  # frames to either side that a frame sees; None: all of them

    def __init__(self, dim: int, heads: int, positions: RelativePositions | Rotary | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.positions = positions
        self.product: nn.Module = ScaledDotProduct()
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (batch, frames, dim), with (batch,) lengths in frames, to (batch, frames, dim)."""
        query, key, value = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.query, self.key, self.value))
        if isinstance(self.positions, Rotary):
            query, key = self.positions(query), self.positions(key)
        relative = self.positions if isinstance(self.positions, RelativePositions) else None
        return self.output(self.attend(query, key, value, lengths, relative).flatten(2))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, relative: RelativePositions | None
    ) -> Tensor:
        """Return the context of every frame. Shapes as in `full_attention`."""
        return full_attention(self.product, query, key, value, lengths, relative)
