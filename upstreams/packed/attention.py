"""Multi-head self-attention on the native kernel, over numpy arrays. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from upstreams.config import EncoderConfig
from upstreams.packed.layout import Array, Floats
from upstreams.packed.linear import ONE_BIT, BinaryBits, FloatLinear
from upstreams.packed.native import Native
from upstreams.packed.tensors import AnyLinear, TensorReader
from upstreams.quantization.levels import whole_numbers


@dataclass
class Operands:
    """Queries, keys and values as the kernel takes them, (frames, heads, ...); relative scores (heads, frames, ...)."""

    query: Array
    key: Array
    value: Array
    relative: Floats | None


class Relative:
    """Transformer-XL's relative positions (upstreams/encoders/positions.py)."""

    def __init__(self, tensors: TensorReader, name: str, dim: int, heads: int) -> None:
        self.heads, self.dim = heads, dim
        self.projection = tensors.linear(f"{name}.projection", dim)
        self.content = tensors.take(f"{name}.content_bias").reshape(heads, -1)
        self.position = tensors.take(f"{name}.position_bias").reshape(heads, -1)

    def __call__(self, query: Floats, reach: int, kernel: Native) -> Floats:
        """(frames, heads, head dim) -> scores (heads, frames, 2 reach + 1)."""
        rates = np.exp(np.arange(0, self.dim, 2, dtype=np.float32) * np.float32(-math.log(10_000.0) / self.dim))
        angles = np.arange(reach, -reach - 1, -1, dtype=np.float32)[:, None] * rates
        sinusoids = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(angles), -1)[:, : self.dim]
        zeros = np.zeros(len(angles), np.float32)
        keys = self.projection(np.ascontiguousarray(sinusoids), kernel).reshape(len(angles), self.heads, -1)
        query = (query + self.position) / np.float32(math.sqrt(query.shape[-1]))
        scores = [FloatLinear(keys[:, h], zeros)(np.ascontiguousarray(query[:, h]), kernel) for h in range(self.heads)]
        return np.stack(scores)


class Attention:
    """Multi-head self-attention over all frames, or over a window of `radius` frames to either side."""

    def __init__(self, tensors: TensorReader, name: str, config: EncoderConfig) -> None:
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
            # Relative and rotary positions need queries and keys in floating point before they become bits.
            is_direct = operand == "value" or config.positions in ("conv", "none")
            if self.bits == 1 and is_direct and tensors.bits(layer) == ONE_BIT:
                self.layers[operand] = BinaryBits(tensors.layer(layer, dim), 0.0, False, config.heads)
            else:
                self.layers[operand] = tensors.linear(layer, dim)
        self.output = tensors.linear(f"{name}.output", dim)

    def operands(self, x: Floats, first: int, reach: int, kernel: Native) -> Operands:
        """Return queries, keys and values of x (frames, dim).

        first: number of x's first frame in the utterance. reach: largest offset of relative positions, in frames.
        """
        arrays: dict[str, Array] = {}
        relative = None
        for name, layer in self.layers.items():
            y: Array = layer(x, kernel).reshape(len(x), self.heads, -1)
            if not isinstance(layer, BinaryBits):
                if self.rotary and name != "value":
                    y = rotate(y, first)
                elif self.relative is not None and name == "query":
                    relative = self.relative(y, reach, kernel)
                    y = y + self.relative.content
                if self.bits == 1:
                    y = kernel.binarize(y.reshape(len(x) * self.heads, -1), None).reshape(len(x), self.heads, -1)
                elif self.bits < 32:
                    y = whole_numbers(y, self.bits, True, self.scales[name], np)
            arrays[name] = y
        return Operands(arrays["query"], arrays["key"], arrays["value"], relative)

    def context(self, operands: Operands, first: int, kernel: Native) -> Floats:
        """Return the weighted sums of values, (queries, dim), which `output` takes.

        first: the key at the position of the first query.
        """
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


def rotate(x: Floats, first: int) -> Floats:
    """Return (frames, heads, head dim) with rotary positions (upstreams/encoders/positions.py) from `first` on."""
    half = x.shape[-1] // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000.0) / half))
    angles = np.arange(first, first + len(x), dtype=np.float32)[:, None, None] * rates
    cosine, sine = np.cos(angles), np.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], -1)
