"""Encoders: frames -> hidden states. `build_encoder` reads the configuration; the classes take plain arguments."""

from __future__ import annotations

from torch import nn

from upstreams.config import EncoderConfig
from upstreams.encoders.attention import Attention
from upstreams.encoders.conformer import ConformerBlock
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions, RelativePositions, Rotary
from upstreams.encoders.squeezeformer import Squeezeformer, SqueezeformerBlock
from upstreams.encoders.stack import Encoder
from upstreams.encoders.transformer import PostNormBlock, PreNormBlock


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of that configuration, randomly initialised.

    A Sparseformer is the Transformer's stack with attention confined to a local window: nothing but self-attention and
    feed-forward, which is what sets it apart from Conformer and Squeezeformer.
    """
    dim = config.dim

    def attention() -> Attention:
        radius = config.radius if config.kind == "sparseformer" else None
        match config.positions:
            case "relative":
                return Attention(dim, config.heads, radius, RelativePositions(dim, config.heads))
            case "rotary":
                return Attention(dim, config.heads, radius, Rotary())
        return Attention(dim, config.heads, radius)

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
            case _:
                kind = PreNormBlock if config.norm == "pre" else PostNormBlock
                return kind(attention(), feed_forward(), dim, config.dropout)

    blocks = [block() for _ in range(config.layers)]
    positions = None
    if config.positions == "conv":
        positions = ConvPositions(dim, config.position_kernel, config.position_groups)
    if config.kind == "squeezeformer":
        return Squeezeformer(blocks, dim, config.reduce, config.recover, positions, config.layerdrop)
    if config.kind == "conformer":  # each block ends in a norm of its own
        return Encoder(blocks, positions, layerdrop=config.layerdrop)
    norm = nn.LayerNorm(dim)
    if config.norm == "pre":
        return Encoder(blocks, positions, norm=norm, layerdrop=config.layerdrop)
    return Encoder(blocks, positions, input_norm=norm, layerdrop=config.layerdrop)


__all__ = ["Encoder", "build_encoder"]
