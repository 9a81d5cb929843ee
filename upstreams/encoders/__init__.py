"""Encoders map frames to hidden states. `build_encoder` reads the configuration; the classes take plain arguments."""

from __future__ import annotations

from torch import nn

from upstreams.config import EncoderConfig
from upstreams.encoders.attention import Attention
from upstreams.encoders.conformer import ConformerBlock
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions, RelativePositions, Rotary
from upstreams.encoders.sparseformer import LocalAttention, SparseformerBlock
from upstreams.encoders.squeezeformer import Squeezeformer, SqueezeformerBlock
from upstreams.encoders.stack import Encoder
from upstreams.encoders.transformer import TransformerBlock


def build_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of `config`, randomly initialised."""
    dim, pre_norm = config.dim, config.norm == "pre"

    def attention_positions() -> RelativePositions | Rotary | None:
        match config.positions:
            case "relative":
                return RelativePositions(dim, config.heads)
            case "rotary":
                return Rotary()
        return None

    def attention() -> Attention:
        return Attention(dim, config.heads, attention_positions())

    def feed_forward() -> FeedForward:
        return FeedForward(dim, config.feed_forward_dim, config.activation)

    def convolution() -> ConvolutionModule:
        return ConvolutionModule(dim, config.kernel, gated=config.kind == "conformer")

    def block() -> nn.Module:
        match config.kind:
            case "conformer":
                parts = feed_forward(), attention(), convolution(), feed_forward()
                return ConformerBlock(*parts, dim, config.dropout)
            case "squeezeformer":
                return SqueezeformerBlock(
                    attention(), feed_forward(), convolution(), feed_forward(), dim, config.dropout
                )
            case "sparseformer":
                local = LocalAttention(dim, config.heads, config.radius, attention_positions())
                return SparseformerBlock(local, feed_forward(), dim, config.dropout, pre_norm)
        return TransformerBlock(attention(), feed_forward(), dim, config.dropout, pre_norm)

    blocks = [block() for _ in range(config.layers)]
    positions = None
    if config.positions == "conv":
        positions = ConvPositions(dim, config.position_kernel, config.position_groups)
    if config.kind == "squeezeformer":
        return Squeezeformer(blocks, dim, config.reduce, config.recover, positions, config.layerdrop)
    if config.kind == "conformer":  # each block ends with a norm
        return Encoder(blocks, positions, layerdrop=config.layerdrop)
    norm = nn.LayerNorm(dim)
    if pre_norm:
        return Encoder(blocks, positions, norm=norm, layerdrop=config.layerdrop)
    return Encoder(blocks, positions, input_norm=norm, layerdrop=config.layerdrop)


__all__ = ["Encoder", "build_encoder"]
