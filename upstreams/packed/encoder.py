"""The blocks of Transformers and Sparseformers on the native kernel, over numpy arrays. Imports no torch."""

from __future__ import annotations

import numpy as np

from upstreams.config import EncoderConfig, ModelConfig
from upstreams.packed.attention import Attention, Operands
from upstreams.packed.layout import Floats
from upstreams.packed.linear import ONE_BIT, BinaryFeedForward, FloatConvolution
from upstreams.packed.native import Native
from upstreams.packed.tensors import AnyLinear, TensorReader
from upstreams.quantization.spec import wants_relu


class Norm:
    """Layer normalisation."""

    def __init__(self, tensors: TensorReader, name: str) -> None:
        self.weight, self.bias = (tensors.take(f"{name}.{part}") for part in ("weight", "bias"))

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(frames, dim) -> the same."""
        return kernel.layer_norm(x, self.weight, self.bias)


class FeedForward:
    """dim -> hidden -> dim."""

    def __init__(self, tensors: TensorReader, name: str, config: EncoderConfig, activation: str) -> None:
        dim, hidden = config.dim, config.feed_forward_dim
        expand, contract = f"{name}.expand", f"{name}.contract"
        self.activation = activation
        self.fused: BinaryFeedForward | None = None
        self.layers: list[AnyLinear] = []
        is_binary = all(tensors.bits(layer) == ONE_BIT for layer in (expand, contract))
        if is_binary and not tensors.layers[contract].signed:
            self.fused = BinaryFeedForward(tensors.layer(expand, dim), tensors.layer(contract, hidden))
        else:
            self.layers = [tensors.linear(expand, dim), tensors.linear(contract, hidden)]

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(frames, dim) -> the same."""
        if self.fused is not None:
            return self.fused(x, kernel)
        expand, contract = self.layers
        y = expand(x, kernel)
        if self.activation == "relu":
            np.maximum(y, 0, out=y)
        elif self.activation == "gelu":
            kernel.gelu(y)
        else:
            y /= 1 + np.exp(-y)
        return contract(y, kernel)


class Block:
    """A Transformer block with the norms before or after its modules."""

    def __init__(self, tensors: TensorReader, name: str, config: EncoderConfig, activation: str) -> None:
        self.is_pre_norm = config.norm == "pre"
        self.attention_norm = Norm(tensors, f"{name}.attention_norm")
        self.attention = Attention(tensors, f"{name}.attention", config)
        self.feed_forward_norm = Norm(tensors, f"{name}.feed_forward_norm")
        self.feed_forward = FeedForward(tensors, f"{name}.feed_forward", config, activation)

    def operands(self, x: Floats, first: int, reach: int, kernel: Native) -> Operands:
        """Return attention's operands of the block's input x (frames, dim). Arguments as in `Attention.operands`."""
        return self.attention.operands(self.attention_norm(x, kernel) if self.is_pre_norm else x, first, reach, kernel)

    def finish(self, x: Floats, context: Floats, kernel: Native) -> Floats:
        """Return the block's output for its input x and attention's context, both (frames, dim)."""
        y = self.attention.output(context, kernel)
        y += x
        if self.is_pre_norm:
            y += self.feed_forward(self.feed_forward_norm(y, kernel), kernel)
            return y
        y = self.attention_norm(y, kernel)
        y += self.feed_forward(y, kernel)
        return self.feed_forward_norm(y, kernel)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(frames, dim) -> the same, for a whole utterance."""
        reach = visible_reach(len(x), self.attention.radius)
        return self.finish(x, self.attention.context(self.operands(x, 0, reach, kernel), 0, kernel), kernel)


def visible_reach(frames: int, radius: int | None) -> int:
    """Return how many frames away the farthest visible key of an utterance may be. radius: None sees all frames."""
    return frames - 1 if radius is None else min(radius, frames - 1)


class Positions:
    """Convolutional positions, which see `before` frames to the left and `after` frames to the right."""

    def __init__(self, tensors: TensorReader, config: EncoderConfig) -> None:
        taps, groups, dim = config.position_kernel, config.position_groups, config.dim
        weight, bias, self.quantize = tensors.convolution("encoder.positions.convolution", dim, dim // groups, taps, 1)
        self.convolution = FloatConvolution(weight[..., 0], bias, groups)
        self.before, self.after = taps // 2, taps - 1 - taps // 2

    def __call__(self, padded: Floats, kernel: Native, zeros: tuple[int, int] = (0, 0)) -> Floats:
        """Return what is added to the frames, (frames, dim), for (before + frames + after, dim).

        Frames outside the utterance must be zero. zeros: how many frames at the beginning and at the end are known to
        be outside.
        """
        y = self.convolution(self.quantize(padded), kernel, zeros)
        kernel.gelu(y)
        return y


def activation(config: ModelConfig, tensors: TensorReader, block: str) -> str:
    """Return the activation between the two linear layers of a block's feed-forward module."""
    contract = f"{block}.feed_forward.contract"
    # Quantizing the second layer may put a ReLU before it (quantization/convert.py).
    is_relu = wants_relu(config.quantization.feed_forward_input, tensors.bits(contract))
    return "relu" if is_relu and contract in tensors.layers else config.encoder.activation
