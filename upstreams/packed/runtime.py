"""A packed file -> hidden states, with numpy and the native kernel alone: for devices. Imports no torch.

from upstreams.packed.runtime import Runtime

runtime = Runtime("sparseformer_dn_s_w1a1.safetensors")
hidden_states = runtime(waveform)  # 16 kHz, mono, in [-1, 1]
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upstreams.config import EncoderConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.packed import file, kernels
from upstreams.packed.kernels import Floats, Native
from upstreams.packed.linear import BinaryBits, BinaryFeedForward, FloatConvolution, FloatLinear
from upstreams.packed.log_mel import FrontEnd
from upstreams.packed.tensors import AnyLinear, Tensors
from upstreams.quantization.levels import whole_numbers
from upstreams.quantization.spec import Bits

ONE_BIT = Bits(1, 1)
Array = NDArray[Any]


class Norm:
    """Layer normalisation."""

    def __init__(self, tensors: Tensors, name: str, dim: int) -> None:
        self.weight, self.bias = (tensors.take(f"{name}.{part}", dim) for part in ("weight", "bias"))

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(frames, dim) -> the same."""
        return kernel.layer_norm(x, self.weight, self.bias)


class FeedForward:
    """dim -> hidden -> dim."""

    def __init__(self, tensors: Tensors, name: str, config: EncoderConfig, activation: str) -> None:
        dim, hidden = config.dim, config.feed_forward_dim
        names = f"{name}.expand", f"{name}.contract"
        self.activation = activation
        self.fused: BinaryFeedForward | None = None
        self.layers: list[AnyLinear] = []
        binary = all(tensors.bits(layer) == ONE_BIT for layer in names) and not tensors.layers[names[1]].signed
        if binary:
            expand = tensors.packed(names[0], dim, hidden, dim)
            self.fused = BinaryFeedForward(expand, tensors.packed(names[1], hidden, dim, hidden))
        else:
            self.layers = [tensors.linear(names[0], dim, hidden), tensors.linear(names[1], hidden, dim)]

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


@dataclass
class Operands:
    """Queries, keys and values as the kernel takes them, (frames, heads, ...); relative scores (heads, frames, ...)."""

    query: Array
    key: Array
    value: Array
    relative: Floats | None


class Relative:
    """Transformer-XL's relative positions (upstreams/encoders/positions.py)."""

    def __init__(self, tensors: Tensors, name: str, dim: int, heads: int) -> None:
        self.heads, self.dim = heads, dim
        self.projection = tensors.take(f"{name}.projection.weight", dim, dim)
        self.content = tensors.take(f"{name}.content_bias", dim).reshape(heads, -1)
        self.position = tensors.take(f"{name}.position_bias", dim).reshape(heads, -1)

    def __call__(self, query: Floats, reach: int, kernel: Native) -> Floats:
        """(frames, heads, head dim) -> scores (heads, frames, 2 reach + 1)."""
        rates = np.exp(np.arange(0, self.dim, 2, dtype=np.float32) * np.float32(-math.log(10_000.0) / self.dim))
        angles = np.arange(reach, -reach - 1, -1, dtype=np.float32)[:, None] * rates
        sinusoids = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(angles), -1)[:, : self.dim]
        nothing = np.zeros(len(angles), np.float32)
        keys = (sinusoids @ self.projection.T).reshape(len(angles), self.heads, -1)
        query = (query + self.position) / np.float32(math.sqrt(query.shape[-1]))
        scores = [
            FloatLinear(keys[:, h], nothing)(np.ascontiguousarray(query[:, h]), kernel) for h in range(self.heads)
        ]
        return np.stack(scores)


class Attention:
    """Multi-head self-attention over all frames or a window of `radius` frames to either side."""

    def __init__(self, tensors: Tensors, name: str, config: EncoderConfig) -> None:
        self.heads, self.dim = config.heads, config.dim
        self.radius = config.radius if config.kind == "sparseformer" else None
        self.rotary = config.positions == "rotary"
        self.relative: Relative | None = None
        dim = config.dim
        if config.positions == "relative":
            self.relative = Relative(tensors, f"{name}.positions", dim, config.heads)
        product = f"{name}.product"
        self.bits = tensors.bits(product).activation
        self.scales: dict[str, float] = {}
        if self.bits < 32:
            names = ("query", "key", "value", "probability")
            self.scales = {operand: tensors.scale(f"{product}.{operand}") for operand in names}
        self.layers: dict[str, AnyLinear | BinaryBits] = {}
        for operand in ("query", "key", "value"):
            layer = f"{name}.{operand}"
            is_direct = operand == "value" or config.positions in ("conv", "none")
            if self.bits == 1 and is_direct and tensors.bits(layer) == ONE_BIT:
                self.layers[operand] = BinaryBits(tensors.packed(layer, dim, dim, dim), 0.0, False, config.heads)
            else:
                self.layers[operand] = tensors.linear(layer, dim, dim)
        self.output = tensors.linear(f"{name}.output", dim, dim)

    def operands(self, x: Floats, first: int, reach: int, kernel: Native) -> Operands:
        """x (frames, dim), whose first frame is number `first` of the utterance; reach: of relative positions."""
        found: dict[str, Array] = {}
        relative = None
        for name, layer in self.layers.items():
            y: Array = layer(x, kernel).reshape(len(x), self.heads, -1)
            if not isinstance(layer, BinaryBits):
                if self.rotary and name != "value":
                    y = rotated(y, first)
                elif self.relative is not None and name == "query":
                    relative = self.relative(y, reach, kernel)
                    y = y + self.relative.content
                if self.bits == 1:
                    y = kernel.binarize(y.reshape(len(x) * self.heads, -1), None).reshape(len(x), self.heads, -1)
                elif self.bits < 32:
                    y = whole_numbers(y, self.bits, True, self.scales[name], np)
            found[name] = y
        return Operands(found["query"], found["key"], found["value"], relative)

    def context(self, operands: Operands, first: int, kernel: Native) -> Floats:
        """(queries, dim), which `output` takes; first: the key that stands where the first query stands."""
        head = self.dim // self.heads
        query, key, value = (np.ascontiguousarray(x)[None] for x in (operands.query, operands.key, operands.value))
        relative = None if operands.relative is None else np.ascontiguousarray(operands.relative)
        lengths = np.array([len(operands.key)], np.int64)
        score = 1 / math.sqrt(head)
        if not self.scales:
            scales = score, 1.0, 0, 1.0
            y = kernel.float_attention(query, key, value, lengths, first, self.radius, scales, relative)
            return y.reshape(-1, self.dim)
        score *= self.scales["query"] * self.scales["key"]
        probability, context = self.scales["probability"], self.scales["value"] * self.scales["probability"]
        if self.bits == 1:
            limits = score, probability / 2, context
            y = kernel.binary_attention(query, key, value, head, lengths, first, self.radius, limits, relative)
        else:
            scales = score, probability, 2**self.bits - 1, context
            y = kernel.float_attention(query, key, value, lengths, first, self.radius, scales, relative)
        return y.reshape(-1, self.dim)


def rotated(x: Floats, first: int) -> Floats:
    """Rotary positions (upstreams/encoders/positions.py) of (frames, heads, head dim) from frame `first` on."""
    half = x.shape[-1] // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000.0) / half))
    angles = np.arange(first, first + len(x), dtype=np.float32)[:, None, None] * rates
    cosine, sine = np.cos(angles), np.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], -1)


class Block:
    """A Transformer's block with the norms before or after its modules."""

    def __init__(self, tensors: Tensors, name: str, config: EncoderConfig, activation: str) -> None:
        self.is_pre_norm = config.norm == "pre"
        self.attention_norm = Norm(tensors, f"{name}.attention_norm", config.dim)
        self.attention = Attention(tensors, f"{name}.attention", config)
        self.feed_forward_norm = Norm(tensors, f"{name}.feed_forward_norm", config.dim)
        self.feed_forward = FeedForward(tensors, f"{name}.feed_forward", config, activation)

    def operands(self, x: Floats, first: int, reach: int, kernel: Native) -> Operands:
        """What frames of the block's input (frames, dim) are to attention."""
        return self.attention.operands(self.attention_norm(x, kernel) if self.is_pre_norm else x, first, reach, kernel)

    def finish(self, x: Floats, context: Floats, kernel: Native) -> Floats:
        """The block's output from its input and attention's context, both (frames, dim)."""
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
        reach = len(x) - 1 if self.attention.radius is None else self.attention.radius
        return self.finish(x, self.attention.context(self.operands(x, 0, reach, kernel), 0, kernel), kernel)


class Positions:
    """Convolutional positions: `before` frames of context to the left and `after` to the right."""

    def __init__(self, tensors: Tensors, config: EncoderConfig) -> None:
        taps, groups, dim = config.position_kernel, config.position_groups, config.dim
        weight, bias, self.quantize = tensors.convolution(
            "encoder.positions.convolution", dim, dim // groups, taps, 1, groups=groups
        )
        self.convolution = FloatConvolution(weight[..., 0], bias, groups)
        self.before, self.after = taps // 2, taps - 1 - taps // 2

    def __call__(self, padded: Floats, kernel: Native, zeros: tuple[int, int] = (0, 0)) -> Floats:
        """(before + frames + after, dim), zero outside the utterance -> what is added to the frames.

        zeros: how many frames at the beginning and the end lie outside, as far as the caller knows.
        """
        y = self.convolution(self.quantize(padded), kernel, zeros)
        kernel.gelu(y)
        return y


def is_supported(config: ModelConfig) -> bool:
    """Whether the encoder and the front-end are among those that need no torch."""
    return config.encoder.kind in ("transformer", "sparseformer") and config.front_end.kind == "log_mel"


class Runtime:
    """A packed model.

    packed: a file's path, or its contents; threads: of the native kernel. Raises UserError when the file is not sound,
    when there is no native kernel on this machine, and on encoders and front-ends that only torch runs: Conformers,
    Squeezeformers and waveform convolutions.
    """

    def __init__(self, packed: str | os.PathLike[str] | file.PackedFile, threads: int = 1) -> None:
        if not isinstance(packed, file.PackedFile):
            packed = file.read(Path(packed))
        level = kernels.chosen()
        if level not in kernels.LEVELS:
            raise UserError(f"the runtime without torch needs the compiled kernel, but here {level} is to compute")
        if not is_supported(packed.config):
            what = f"a {packed.config.encoder.kind} with a {packed.config.front_end.kind} front-end"
            raise UserError(
                f"{packed.path} holds {what}: without torch only log-mel Transformers and Sparseformers run"
            )
        self.kernel = kernels.native(level, threads)
        self.config = packed.config
        tensors = Tensors(packed)
        self._take(tensors, packed.config)
        tensors.finish()
        kernels.give_back_memory()

    def _take(self, tensors: Tensors, config: ModelConfig) -> None:
        encoder = config.encoder
        self.front_end = FrontEnd(tensors, config)
        self.positions = Positions(tensors, encoder) if encoder.positions == "conv" else None
        self.input_norm = Norm(tensors, "encoder.input_norm", encoder.dim) if encoder.norm == "post" else None
        self.blocks = [
            Block(tensors, f"encoder.blocks.{n}", encoder, activation(config, tensors, f"encoder.blocks.{n}"))
            for n in range(encoder.layers)
        ]
        self.norm = Norm(tensors, "encoder.norm", encoder.dim) if encoder.norm == "pre" else None
        self.rotation: FloatLinear | None = None
        if config.output_map:
            self.mean = tensors.take("output_mean", encoder.layers + 1, encoder.dim)
            self.std = tensors.take("output_std", encoder.layers + 1, encoder.dim)
            rotation = tensors.take("output_rotation", encoder.dim, encoder.dim)
            self.rotation = FloatLinear(np.ascontiguousarray(rotation.T), np.zeros(encoder.dim, np.float32))

    def frame_count(self, samples: int) -> int:
        """Frames of an utterance of that many samples."""
        return self.front_end.frame_count(samples)

    def __call__(self, waveform: ArrayLike, layers: int | None = None) -> list[Floats]:
        """(samples,) at 16 kHz in [-1, 1] -> layers + 1 hidden states (frames, dim), as the torch model's.

        layers: blocks to run, all when None. Raises UserError on what is no such waveform.
        """
        samples = checked(waveform)
        if len(samples) == 0:
            raise UserError("the waveform is empty: at least one sample is needed")
        return self.encode(self.front_end(samples, self.kernel), layers)

    def encode(self, x: Floats, layers: int | None = None) -> list[Floats]:
        """The front-end's output (frames, dim) -> layers + 1 hidden states."""
        x = self.embed(x)
        states = [self.exported(0, x)]
        for layer, block in enumerate(self.blocks[:layers], 1):
            x = block(x, self.kernel)
            states.append(self.exported(layer, x))
        return states

    def embed(self, x: Floats) -> Floats:
        """The front-end's output -> the first block's input, both (frames, dim)."""
        if self.positions is not None:
            around = self.positions.before, self.positions.after
            x = x + self.positions(np.pad(x, (around, (0, 0))), self.kernel, around)
        return x if self.input_norm is None else self.input_norm(x, self.kernel)

    def exported(self, layer: int, state: Floats) -> Floats:
        """Hidden state `layer` as it is given out: the last one normalised, all mapped."""
        if layer == len(self.blocks) and self.norm is not None:
            state = self.norm(state, self.kernel)
        if self.rotation is None:
            return state
        x = state - self.mean[layer]
        x /= self.std[layer]
        return self.rotation(x, self.kernel)


def activation(config: ModelConfig, tensors: Tensors, block: str) -> str:
    """What stands between the two linear layers of a block's feed-forward module."""
    contract, choice = f"{block}.feed_forward.contract", config.quantization.feed_forward_input
    bits = tensors.bits(contract)
    # Quantizing the second layer puts a ReLU before it, by choice or where there is one bit (quantization/convert.py).
    is_wanted = choice == "relu" or (choice == "auto" and 1 in (bits.weight, bits.activation))
    return "relu" if is_wanted and contract in tensors.layers else config.encoder.activation


def checked(waveform: ArrayLike) -> Floats:
    """A waveform as float32; raises UserError when it is not one-dimensional, in floating point and finite."""
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"a waveform must be floating point of shape (samples,), not {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError("the waveform holds NaN or infinite samples")
    return np.ascontiguousarray(samples, np.float32)
