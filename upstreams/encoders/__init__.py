"""Encoders: frames -> hidden states. `build_encoder` reads the configuration; the classes take plain arguments."""

from __future__ import annotations

from upstreams.config import EncoderConfig
from upstreams.encoders.attention import Attention
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions
from upstreams.encoders.transformer import Block, Encoder


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of that configuration, randomly initialised.

    A Sparseformer is the Transformer's stack with attention confined to a local window: nothing but self-attention and
    feed-forward, which is what sets it apart from Conformer and Squeezeformer.
    """
    radius = config.radius if config.kind == "sparseformer" else None
    blocks = [
        Block(
            Attention(config.dim, config.heads, radius),
            FeedForward(config.dim, config.feed_forward_dim, config.activation),
            config.dim,
            config.dropout,
        )
        for _ in range(config.layers)
    ]
    positions = ConvPositions(config.dim, config.position_kernel, config.position_groups)
    return Encoder(positions, blocks, config.dim)


__all__ = ["Encoder", "build_encoder"]
