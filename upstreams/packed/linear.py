"""Linear layers and attention on the native kernel, over numpy arrays. Imports no torch.

A layer is made of its canonical tensors, which are what a packed file holds, and keeps them in the kernel's layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upstreams.packed.kernels import Bytes, Floats, Integers, Native, Words, in_blocks, in_float_blocks, padded_to_block
from upstreams.packed.kernels import words as words_of
from upstreams.quantization.spec import Bits


@dataclass(frozen=True)
class Packed:
    """The canonical tensors of one quantized linear layer.

    codes: (outputs, bytes), whole numbers of bits.weight bits, the lowest bit first; with one bit 1 is +1 and 0 is -1.
    scale: of the weights, () or (outputs,). alpha: scale of the input, None if it is float; beta: its shift (inputs,).
    non_negative: the input's levels start at 0.
    """

    bits: Bits
    inputs: int
    codes: Bytes
    scale: Floats
    bias: Floats
    alpha: Floats | None
    beta: Floats | None
    non_negative: bool

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.codes)

    def column_sums(self) -> Integers:
        """For each output the sum of its weights of +1 and -1."""
        ones = np.unpackbits(self.codes, axis=1, count=self.inputs, bitorder="little").sum(1, dtype=np.int32)
        return 2 * ones - np.int32(self.inputs)


class BinaryLinear:
    """1-bit weights and input: a whole number for each output, then one scale and the bias."""

    def __init__(self, packed: Packed) -> None:
        assert packed.alpha is not None
        self.outputs = packed.outputs
        self.weights = in_blocks(packed.codes)
        self.beta = packed.beta
        self.threshold = float(packed.alpha) / 2 if packed.non_negative else 0.0
        self.non_negative = packed.non_negative
        # A value in {0, 1} is half of one in {-1, +1} plus a half, whose product is half the column's sum.
        offset = np.full(self.outputs, packed.inputs, np.int32)
        if packed.non_negative:
            offset += packed.column_sums()
        scale = packed.scale.astype(np.float64) * float(packed.alpha) * (0.5 if packed.non_negative else 1.0)
        self.exact_scale = np.broadcast_to(scale, (self.outputs,))
        self.offset = padded_to_block(offset)
        self.scale = padded_to_block(self.exact_scale.astype(np.float32))
        self.bias = padded_to_block(packed.bias)
        self.most = packed.inputs

    def binarize(self, x: Floats, kernel: Native) -> Words:
        """The input (rows, inputs) as bits (rows, words)."""
        return kernel.binarize(x, self.beta, self.threshold, strict=self.non_negative)

    def floats(self, bits: Words, kernel: Native) -> Floats:
        """Bits (rows, words) -> (rows, outputs)."""
        return kernel.binary_to_floats(bits, self.weights, self.outputs, self.offset, self.scale, self.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return self.floats(self.binarize(x, kernel), kernel)

    def limits(self, threshold: float, strict: bool) -> Integers:
        """(outputs,): the output is >= threshold, or > where `strict`, if and only if fewer bits than this differ."""
        # scale (offset - 2 count) + bias falls with count; a scale of 0 leaves the bias alone.
        bias, offset = self.bias[: self.outputs].astype(np.float64), self.offset[: self.outputs]
        with np.errstate(divide="ignore", invalid="ignore"):
            highest = (offset - (threshold - bias) / self.exact_scale) / 2
        constant = np.where(bias > threshold if strict else bias >= threshold, np.inf, -np.inf)
        highest = np.where(self.exact_scale > 0, highest, constant)
        limit = np.ceil(highest) if strict else np.floor(highest) + 1
        return np.clip(limit, 0, self.most + 1).astype(np.int32)


class BinaryBits:
    """A binary layer whose outputs are wanted as bits only: those of the next layer's input, or of a query.

    heads: each head's outputs begin a word of their own.
    """

    def __init__(self, packed: Packed, threshold: float, strict: bool, heads: int = 1) -> None:
        self.linear = BinaryLinear(packed)
        dim = packed.outputs // heads
        self.words = words_of(dim)
        # Padding outputs have the limit 0, which no count is below.
        limit = np.zeros((heads, self.words * 32), np.int32)
        limit[:, :dim] = self.linear.limits(threshold, strict).reshape(heads, dim)
        codes = np.zeros((heads, self.words * 32, packed.codes.shape[1]), np.uint8)
        codes[:, :dim] = packed.codes.reshape(heads, dim, -1)
        self.limit = limit.ravel()
        self.linear.weights = in_blocks(codes.reshape(len(self.limit), -1))

    def __call__(self, x: Floats, kernel: Native) -> Words:
        """(rows, inputs) -> bits (rows, heads * words of a head)."""
        bits = self.linear.binarize(x, kernel)
        return kernel.binary_to_bits(bits, self.linear.weights, len(self.limit), self.limit)


class ByteLinear:
    """1-bit weights, 8-bit input."""

    def __init__(self, packed: Packed) -> None:
        assert packed.alpha is not None
        self.outputs = packed.outputs
        self.weights = in_blocks(packed.codes)
        self.alpha = float(packed.alpha)
        self.low, self.high = (0, 255) if packed.non_negative else (-128, 127)
        self.offset = padded_to_block(packed.column_sums() * np.int32(self.low))
        scale = np.broadcast_to(packed.scale.astype(np.float64) * self.alpha, (self.outputs,))
        self.scale = padded_to_block(scale.astype(np.float32))
        self.bias = padded_to_block(packed.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        quantized = kernel.quantize_bytes(x, self.alpha, self.low, self.high)
        return kernel.byte_product(quantized, self.weights, self.outputs, self.offset, self.scale, self.bias)


class SignLinear:
    """1-bit weights, floating-point input."""

    def __init__(self, packed: Packed) -> None:
        self.outputs = packed.outputs
        self.weights = in_blocks(packed.codes)
        self.scale = padded_to_block(np.ascontiguousarray(np.broadcast_to(packed.scale, (self.outputs,))))
        self.bias = padded_to_block(packed.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return kernel.sign_product(x, self.weights, self.outputs, self.scale, self.bias)


class FloatLinear:
    """Weights and input in floating point."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        self.outputs = len(weight)
        self.weights = in_float_blocks(weight)
        self.bias = padded_to_block(bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return kernel.float_product(x, self.weights, self.outputs, self.bias)


class FloatConvolution:
    """A convolution along frames in floating point, from where all its taps find a frame.

    weight: (outputs, inputs of a group, taps).
    """

    def __init__(self, weight: Floats, bias: Floats, groups: int) -> None:
        outputs, inputs, self.taps = weight.shape
        self.groups, self.each = groups, outputs // groups
        self.bias, self.depthwise = bias, inputs == 1 and outputs == groups
        if self.depthwise:
            self.weights = np.ascontiguousarray(weight[:, 0].T)
        else:
            # (outputs, taps, inputs): a window of frames that lie one after the other is one row of a product.
            by_group = weight.reshape(groups, self.each, inputs, self.taps)
            self.products = [in_float_blocks(group.transpose(0, 2, 1).reshape(self.each, -1)) for group in by_group]
        self.biases = [padded_to_block(group) for group in bias.reshape(groups, self.each)]

    def __call__(self, x: Floats, kernel: Native, zeros: tuple[int, int] = (0, 0)) -> Floats:
        """(frames, inputs) -> (frames - taps + 1, outputs); zeros: frames at x's beginning and end that are zero."""
        if self.depthwise:
            return kernel.depthwise(x, self.weights, self.bias)
        if self.groups == 1:
            return kernel.float_product(x, self.products[0], self.each, self.biases[0], self.taps, zeros)
        groups = x.reshape(len(x), self.groups, -1)
        parts = [
            kernel.float_product(
                np.ascontiguousarray(groups[:, g]), self.products[g], self.each, self.biases[g], self.taps, zeros
            )
            for g in range(self.groups)
        ]
        return np.concatenate(parts, axis=1)


Linear = BinaryLinear | ByteLinear | SignLinear
# The widths that the native kernel knows.
NATIVE: dict[Bits, type[BinaryLinear] | type[ByteLinear] | type[SignLinear]] = {
    Bits(1, 1): BinaryLinear,
    Bits(1, 8): ByteLinear,
    Bits(1, 32): SignLinear,
}


class BinaryFeedForward:
    """Linear, ReLU, linear with every input in one bit: the first product ends in the second one's bits."""

    def __init__(self, expand: Packed, contract: Packed) -> None:
        self.contract = BinaryLinear(contract)
        # The threshold is not negative, so that max(x, 0) lies above it just where x does.
        self.expand = BinaryBits(expand, self.contract.threshold, strict=True)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, dim) -> (rows, dim)."""
        return self.contract.floats(self.expand(x, kernel), kernel)
