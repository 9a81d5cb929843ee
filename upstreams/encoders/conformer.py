"""Conformer (arXiv 2005.08100, section 2): attention and convolution between two half-step feed-forward modules."""

from __future__ import annotations

from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.frontend import padding_mask


class ConformerBlock(nn.Module):
    """Pre-norm modules, each added to its input, and a final norm.

    The modules: feed-forward (first), attention, convolution, feed-forward (second). Both feed-forwards count half.
    """

    def __init__(
        self,
        first: FeedForward,
        attention: Attention,
        convolution: ConvolutionModule,
        second: FeedForward,
        dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(dim)
        self.first = first
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.convolution_norm = nn.LayerNorm(dim)
        self.convolution = convolution
        self.second_norm = nn.LayerNorm(dim)
        self.second = second
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Map x (batch, frames, dim), with (batch,) lengths in frames, to (batch, frames, dim)."""
        padded = padding_mask(lengths, x.shape[1])[..., None]
        x = x + 0.5 * self.dropout(self.first(self.first_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), lengths))
        x = x + self.dropout(self.convolution(self.convolution_norm(x), padded))
        x = x + 0.5 * self.dropout(self.second(self.second_norm(x)))
        return self.norm(x)
