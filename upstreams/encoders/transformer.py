"""Transformer blocks (arXiv 1706.03762): HuBERT's with full attention, a Sparseformer's with a local window."""

from __future__ import annotations

from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.feed_forward import FeedForward


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), as HuBERT Large."""

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


class PostNormBlock(PreNormBlock):
    """norm(x + attention(x)), then norm(x + feed_forward(x)), as HuBERT Base."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim), (batch,) frames -> (batch, frames, dim)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, lengths)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
