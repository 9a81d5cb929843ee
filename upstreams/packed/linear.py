"""Linear layers and convolutions on the native kernel, over numpy arrays. Imports no torch.

A layer is made from the tensors of a packed file and keeps them in the kernel's layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upstreams.packed.layout import (
    Bytes,
    Floats,
    Integers,
    Words,
    pad_to_block,
    to_blocks,
    to_float_blocks,
    words_of,
)
from upstreams.packed.native import Native
from upstreams.quantization.spec import Bits

ONE_BIT = Bits(1, 1)


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one quantized linear layer as a packed file holds them.

    codes: (outputs, bytes), whole numbers of bits.weight bits, the lowest bit first; with one bit 1 is +1 and 0 is -1.
    scale: of the weights, () or (outputs,). alpha: scale of the input, None if the input is float. beta: shift of the
    input (inputs,), or None. non_negative: the lowest level of the input is 0.
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
        """Return for each output the sum of its weights of +1 and -1."""
        ones = np.unpackbits(self.codes, axis=1, count=self.inputs, bitorder="little").sum(1, dtype=np.int32)
        return 2 * ones - np.int32(self.inputs)


class BinaryLinear:
    """1-bit weights and 1-bit input: a whole number for each output, then one scale and the bias."""

    def __init__(self, tensors: LayerTensors) -> None:
        assert tensors.alpha is not None
        self.inputs, self.outputs = tensors.inputs, tensors.outputs
        self.weights = to_blocks(tensors.codes)
        self.beta = tensors.beta
        self.threshold = float(tensors.alpha) / 2 if tensors.non_negative else 0.0
        self.non_negative = tensors.non_negative
        # A level in {0, 1} is half a level in {-1, +1} plus one half; the halves add half the column's sum.
        offset = np.full(self.outputs, self.inputs, np.int32)
        if tensors.non_negative:
            offset += tensors.column_sums()
        scale = tensors.scale.astype(np.float64) * float(tensors.alpha) * (0.5 if tensors.non_negative else 1.0)
        self.exact_scale = np.broadcast_to(scale, (self.outputs,))
        self.offset = pad_to_block(offset)
        self.scale = pad_to_block(self.exact_scale.astype(np.float32))
        self.bias = pad_to_block(tensors.bias)

    def binarize(self, x: Floats, kernel: Native) -> Words:
        """Return the input (rows, inputs) as bits (rows, words)."""
        return kernel.binarize(x, self.beta, self.threshold, strict=self.non_negative)

    def floats(self, bits: Words, kernel: Native) -> Floats:
        """Return the outputs (rows, outputs) for an input of bits (rows, words)."""
        return kernel.binary_to_floats(bits, self.weights, self.outputs, self.offset, self.scale, self.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return self.floats(self.binarize(x, kernel), kernel)

    def limits(self, threshold: float, strict: bool) -> Integers:
        """Return limits (outputs,): the output is >= threshold (> if `strict`) iff fewer bits than its limit differ."""
        # scale (offset - 2 count) + bias falls as count grows. If the scale is 0 the output is the bias.
        bias, offset = self.bias[: self.outputs].astype(np.float64), self.offset[: self.outputs]
        with np.errstate(divide="ignore", invalid="ignore"):
            highest = (offset - (threshold - bias) / self.exact_scale) / 2
        constant = np.where(bias > threshold if strict else bias >= threshold, np.inf, -np.inf)
        highest = np.where(self.exact_scale > 0, highest, constant)
        limit = np.ceil(highest) if strict else np.floor(highest) + 1
        return np.clip(limit, 0, self.inputs + 1).astype(np.int32)


class BinaryBits:
    """A binary layer whose outputs are needed only as bits: the next layer's input, or queries, keys and values.

    heads: the outputs of each head begin a new word.
    """

    def __init__(self, tensors: LayerTensors, threshold: float, strict: bool, heads: int = 1) -> None:
        self.linear = BinaryLinear(tensors)
        dim = tensors.outputs // heads
        padded = words_of(dim) * 32
        # Padding outputs have the limit 0: no count is below it.
        limit = np.zeros((heads, padded), np.int32)
        limit[:, :dim] = self.linear.limits(threshold, strict).reshape(heads, dim)
        codes = np.zeros((heads, padded, tensors.codes.shape[1]), np.uint8)
        codes[:, :dim] = tensors.codes.reshape(heads, dim, -1)
        self.limit = limit.ravel()
        self.linear.weights = to_blocks(codes.reshape(len(self.limit), -1))

    def __call__(self, x: Floats, kernel: Native) -> Words:
        """(rows, inputs) -> bits (rows, heads * words of a head)."""
        bits = self.linear.binarize(x, kernel)
        return kernel.binary_to_bits(bits, self.linear.weights, len(self.limit), self.limit)


class ByteLinear:
    """1-bit weights, 8-bit input."""

    def __init__(self, tensors: LayerTensors) -> None:
        assert tensors.alpha is not None
        self.outputs = tensors.outputs
        self.weights = to_blocks(tensors.codes)
        self.alpha = float(tensors.alpha)
        self.low, self.high = (0, 255) if tensors.non_negative else (-128, 127)
        self.offset = pad_to_block(tensors.column_sums() * np.int32(self.low))
        scale = np.broadcast_to(tensors.scale.astype(np.float64) * self.alpha, (self.outputs,))
        self.scale = pad_to_block(scale.astype(np.float32))
        self.bias = pad_to_block(tensors.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        quantized = kernel.quantize_bytes(x, self.alpha, self.low, self.high)
        return kernel.byte_product(quantized, self.weights, self.outputs, self.offset, self.scale, self.bias)


class SignLinear:
    """1-bit weights, floating-point input."""

    def __init__(self, tensors: LayerTensors) -> None:
        self.outputs = tensors.outputs
        self.weights = to_blocks(tensors.codes)
        self.scale = pad_to_block(np.ascontiguousarray(np.broadcast_to(tensors.scale, (self.outputs,))))
        self.bias = pad_to_block(tensors.bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return kernel.sign_product(x, self.weights, self.outputs, self.scale, self.bias)


class FloatLinear:
    """Weights and input in floating point."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        self.outputs = len(weight)
        self.weights = to_float_blocks(weight)
        self.bias = pad_to_block(bias)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        return kernel.float_product(x, self.weights, self.outputs, self.bias)


class FloatConvolution:
    """A convolution along frames in floating point, without padding.

    weight: (outputs, inputs of a group, taps).
    """

    def __init__(self, weight: Floats, bias: Floats, groups: int) -> None:
        outputs, inputs, self.taps = weight.shape
        self.groups, self.group_outputs = groups, outputs // groups
        self.bias, self.depthwise = bias, inputs == 1 and outputs == groups
        if self.depthwise:
            self.weights = np.ascontiguousarray(weight[:, 0].T)
        else:
            # (outputs, taps, inputs): a window of consecutive frames is one row of a product.
            by_group = weight.reshape(groups, self.group_outputs, inputs, self.taps)
            rows = (group.transpose(0, 2, 1).reshape(self.group_outputs, -1) for group in by_group)
            self.products = [to_float_blocks(group) for group in rows]
        self.biases = [pad_to_block(group) for group in bias.reshape(groups, self.group_outputs)]

    def __call__(self, x: Floats, kernel: Native, zeros: tuple[int, int] = (0, 0)) -> Floats:
        """(frames, inputs) -> (frames - taps + 1, outputs).

        zeros: how many frames at the beginning and at the end of x are known to be zero.
        """
        if self.depthwise:
            return kernel.depthwise(x, self.weights, self.bias)
        if self.groups == 1:
            return kernel.float_product(x, self.products[0], self.group_outputs, self.biases[0], self.taps, zeros)
        groups = x.reshape(len(x), self.groups, -1)
        parts = [
            kernel.float_product(
                np.ascontiguousarray(groups[:, g]),
                self.products[g],
                self.group_outputs,
                self.biases[g],
                self.taps,
                zeros,
            )
            for g in range(self.groups)
        ]
        return np.concatenate(parts, axis=1)


Linear = BinaryLinear | ByteLinear | SignLinear
# Bit widths that the native kernel computes.
NATIVE: dict[Bits, type[BinaryLinear] | type[ByteLinear] | type[SignLinear]] = {
    ONE_BIT: BinaryLinear,
    Bits(1, 8): ByteLinear,
    Bits(1, 32): SignLinear,
}


class BinaryFeedForward:
    """Linear, ReLU, linear, all with 1-bit inputs: the first product gives the bits of the second one's input."""

    def __init__(self, expand: LayerTensors, contract: LayerTensors) -> None:
        self.contract = BinaryLinear(contract)
        # The threshold is not negative: max(x, 0) exceeds it if and only if x does.
        self.expand = BinaryBits(expand, self.contract.threshold, strict=True)

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, dim) -> (rows, dim)."""
        return self.contract.floats(self.expand(x, kernel), kernel)
