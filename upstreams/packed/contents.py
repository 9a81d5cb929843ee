"""What the packed file of a configuration holds: its tensors and quantized layers. Imports no torch.

Everything is listed lazily, so that a check against a small file ends at the first difference, whatever the
configuration describes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from upstreams.config import FFT, WINDOW, ModelConfig
from upstreams.errors import UserError
from upstreams.quantization.spec import FLOAT, Bits, bits_of_module, matches, wants_relu

KERNELS = (10, 3, 3, 3, 3, 2, 2)  # of HuBERT's convolutions (upstreams/frontend.py)


class Values(Enum):
    """Which values a tensor may hold."""

    FINITE = "finite"
    NOT_NEGATIVE = "not be negative"
    POSITIVE = "be positive"
    CODES = "codes"  # weights of few bits, uint8


@dataclass(frozen=True)
class Layer:
    """How to read a quantized layer: its bit widths, and whether its input has negative levels."""

    bits: Bits
    signed: bool


@dataclass(frozen=True)
class Entry:
    """A tensor: float32, or uint8 if it holds codes. The last byte of a row of codes has `spare` bits, which are 0."""

    name: str
    shape: tuple[int, ...]
    values: Values = Values.FINITE
    spare: int = 0


@dataclass(frozen=True)
class Module:
    """A linear layer, a convolution or, without a shape, an attention product, in floating point or quantized."""

    name: str
    kind: str  # as in quantization/convert.py
    shape: tuple[int, ...]  # of the weight
    groups: int = 1
    has_bias: bool = True
    # Whether its input comes from a ReLU, and the configuration's choice of putting one there.
    after_relu: bool = False
    choice: str = "signed"

    def layer(self, bits: Bits) -> Layer | None:
        """Return how it is quantized; None if it is not. Raises UserError if its weights would not be quantized."""
        if not self.shape:
            return None if bits.activation == 32 else Layer(Bits(bits.activation, bits.activation), True)
        if bits == FLOAT:
            return None
        if bits.weight == 32:
            raise UserError(f"{self.name} has bit widths {bits}, but a packed layer must have quantized weights")
        is_float = bits.activation == 32  # an input that is not quantized counts as signed
        return Layer(bits, signed=is_float or not (self.after_relu or wants_relu(self.choice, bits)))

    def entries(self, layer: Layer | None, per_channel: bool) -> Iterator[Entry]:
        """List its tensors. per_channel: a scale for each output."""
        name, outputs = self.name, self.shape[0] if self.shape else 0
        if not self.shape:
            for operand in ("query", "key", "value", "probability") if layer else ():
                yield Entry(f"{name}.{operand}", (), Values.POSITIVE)
            return
        if layer is None:
            yield Entry(f"{name}.weight", self.shape)
            if self.has_bias:
                yield Entry(f"{name}.bias", (outputs,))
            return
        used = math.prod(self.shape[1:]) * layer.bits.weight
        yield Entry(f"{name}.codes", (outputs, -(-used // 8)), Values.CODES, -used % 8)
        # The filters of a depthwise convolution share no scale.
        is_depthwise = len(self.shape) > 2 and self.groups == outputs
        yield Entry(f"{name}.weight_scale", (outputs,) if per_channel or is_depthwise else (), Values.NOT_NEGATIVE)
        yield Entry(f"{name}.bias", (outputs,))
        if layer.bits.activation < 32:
            yield Entry(f"{name}.alpha", (), Values.POSITIVE)
        if layer.bits.activation == 1 and layer.signed:
            yield Entry(f"{name}.beta", (self.shape[1] * self.groups,))


def contents(config: ModelConfig) -> Iterator[Entry | tuple[str, Layer]]:
    """List the tensors, and the quantized layers with their names, of a configuration's packed file.

    Raises UserError on invalid bits, on an override that matches no module, and if nothing is quantized.
    """
    bits, quantization = Bits.parse(config.bits), config.quantization
    overrides = {pattern: Bits.parse(text) for pattern, text in quantization.overrides.items()}
    unmatched, is_quantized = set(overrides), False
    for part in [_front_end, _encoder, _output_map]:
        for item in part(config):
            if isinstance(item, Entry):
                yield item
                continue
            unmatched = {pattern for pattern in unmatched if not matches(pattern, item.name, item.kind)}
            layer = item.layer(bits_of_module(item.name, item.kind, bits, overrides))
            if layer is not None:
                is_quantized = True
                yield item.name, layer
            yield from item.entries(layer, quantization.weight_scale == "channel")
    for pattern in unmatched:
        raise UserError(f"the override {pattern!r} matches no module of {config.name}")
    if not is_quantized:
        raise UserError(f"{config.name} is not quantized ({config.bits})")


Items = Iterator[Entry | Module]


def _norm(name: str, width: int) -> Items:
    yield Entry(f"{name}.weight", (width,))
    yield Entry(f"{name}.bias", (width,))


def _front_end(config: ModelConfig) -> Items:
    front_end, dim = config.front_end, config.encoder.dim
    width, mels = front_end.width, front_end.mels
    is_stem = front_end.kind == "log_mel" and front_end.stem == "convolution"
    if front_end.kind == "waveform":
        is_group = front_end.feature_norm == "group"
        for layer, taps in enumerate(KERNELS):
            shape = (width, width if layer else 1, taps)
            yield Module(f"front_end.convolutions.{layer}", "front_end", shape, has_bias=not is_group)
        for layer in range(1 if is_group else len(KERNELS)):
            yield from _norm(f"front_end.norms.{layer}", width)
        if front_end.projection_norm:
            yield from _norm("front_end.norm", width)
        inputs = width
    else:
        yield Entry("front_end.log_mel.window", (WINDOW,))
        yield Entry("front_end.log_mel.filters", (FFT // 2 + 1, mels))
        yield Entry("front_end.log_mel.mean", (mels,))
        yield Entry("front_end.log_mel.std", (mels,), Values.POSITIVE)
        yield from _norm("front_end.norm", dim)
        inputs = mels * front_end.subsampling
    if is_stem:
        yield Module("front_end.stem.first", "front_end", (width, 1, 3, 3))
        yield Module("front_end.stem.depthwise", "front_end", (width, 1, 3, 3), groups=width, after_relu=True)
        yield Module("front_end.stem.pointwise", "front_end", (width, width, 1, 1))
        inputs = width * -(-mels // 4)
    yield Module("front_end.projection", "front_end", (dim, inputs), after_relu=is_stem)


def _encoder(config: ModelConfig) -> Items:
    encoder, dim = config.encoder, config.encoder.dim
    if encoder.positions == "conv":
        shape = (dim, dim // encoder.position_groups, encoder.position_kernel, 1)
        yield Module("encoder.positions.convolution", "positions", shape, groups=encoder.position_groups)
    if encoder.kind in ("transformer", "sparseformer"):
        yield from _norm("encoder.norm" if encoder.norm == "pre" else "encoder.input_norm", dim)
    if encoder.kind == "squeezeformer":
        yield Module("encoder.reduce_depthwise.convolution", "depthwise", (dim, 1, 5, 1), groups=dim)
        yield Module("encoder.reduce_pointwise", "resampling", (dim, dim))
        yield Module("encoder.recover", "resampling", (dim, dim))
    for block in range(encoder.layers):
        yield from _block(f"encoder.blocks.{block}", config)


def _block(name: str, config: ModelConfig) -> Items:
    kind, dim = config.encoder.kind, config.encoder.dim
    yield from _attention(f"{name}.attention", config)
    if kind in ("transformer", "sparseformer"):
        yield from _feed_forward(f"{name}.feed_forward", config)
        norms = ["attention_norm", "feed_forward_norm"]
    else:
        yield from _feed_forward(f"{name}.first", config)
        yield from _convolution(f"{name}.convolution", config)
        yield from _feed_forward(f"{name}.second", config)
        norms = ["first_norm", "attention_norm", "convolution_norm", "second_norm", "norm"]
    if kind == "squeezeformer":
        norms = [f"norms.{n}" for n in range(4)]
        for n in range(4):
            yield Entry(f"{name}.scales.{n}.scale", (dim,))
            yield Entry(f"{name}.scales.{n}.bias", (dim,))
    for norm in norms:
        yield from _norm(f"{name}.{norm}", dim)


def _attention(name: str, config: ModelConfig) -> Items:
    dim = config.encoder.dim
    for part in ("query", "key", "value", "output"):
        yield Module(f"{name}.{part}", "attention", (dim, dim))
    yield Module(f"{name}.product", "attention", ())
    if config.encoder.positions == "relative":
        yield Module(f"{name}.positions.projection", "positions", (dim, dim), has_bias=False)
        yield Entry(f"{name}.positions.content_bias", (dim,))
        yield Entry(f"{name}.positions.position_bias", (dim,))


def _feed_forward(name: str, config: ModelConfig) -> Items:
    dim, hidden, choice = config.encoder.dim, config.encoder.feed_forward_dim, config.quantization.feed_forward_input
    is_relu = config.encoder.activation == "relu"
    yield Module(f"{name}.expand", "feed_forward", (hidden, dim))
    yield Module(f"{name}.contract", "feed_forward", (dim, hidden), after_relu=is_relu, choice=choice)


def _convolution(name: str, config: ModelConfig) -> Items:
    dim, choice = config.encoder.dim, config.quantization.convolution_input
    inner = dim if config.encoder.kind == "conformer" else 2 * dim
    shape = (inner, 1, config.encoder.kernel, 1)
    yield Module(f"{name}.expand", "convolution", (2 * dim, dim))
    yield Module(f"{name}.depthwise.convolution", "depthwise", shape, groups=inner, choice=choice)
    yield from _norm(f"{name}.norm", inner)
    yield Entry(f"{name}.norm.running_mean", (inner,))
    yield Entry(f"{name}.norm.running_var", (inner,), Values.NOT_NEGATIVE)
    yield Module(f"{name}.contract", "convolution", (dim, inner), choice=choice)


def _output_map(config: ModelConfig) -> Items:
    if config.output_map:
        dim = config.encoder.dim
        yield Entry("output_mean", (config.encoder.layers + 1, dim))
        yield Entry("output_std", (config.encoder.layers + 1, dim), Values.POSITIVE)
        yield Entry("output_rotation", (dim, dim))
