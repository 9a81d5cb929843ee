"""The stack of attention and feed-forward blocks that Transformer and Sparseformer share (pre-norm)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions
from upstreams.frontend import padding_mask


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim), (batch,) frames -> (batch, frames, dim)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), lengths))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Encoder(nn.Module):
    """Positions, blocks, and a final norm on the last block's output."""

    def __init__(self, positions: ConvPositions, blocks: Sequence[Block], dim: int) -> None:
        super().__init__()
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, lengths: Tensor, layers: int | None = None) -> tuple[Tensor, ...]:
        """(batch, frames, dim), (batch,) frames -> layers + 1 hidden states (batch, frames, dim), input first.

        layers: how many blocks to run, all when None.
        """
        padded = padding_mask(lengths, x.shape[1])[..., None]
        # Only the convolution looks across frames without a mask of its own.
        x = x.masked_fill(padded, 0.0)
        x = x + self.positions(x)
        states = [x]
        for block in self.blocks[:layers]:
            x = block(x, lengths)
            states.append(x)
        if len(states) == len(self.blocks) + 1:
            states[-1] = self.norm(x)
        return tuple(state.masked_fill(padded, 0.0) for state in states)
