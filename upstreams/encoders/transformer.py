"""The Transformer block (arXiv 1706.03762) of HuBERT: full attention and feed-forward."""

from __future__ import annotations

from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.feed_forward import FeedForward


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each added to its input.

    pre_norm: normalise the input of each module, as HuBERT Large does. Otherwise normalise each sum, as HuBERT Base.
    """

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, dim: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (batch, frames, dim), with (batch,) lengths in frames, to (batch, frames, dim)."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), lengths))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, lengths)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
