"""Read and validate the tensors of a packed file one at a time. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.errors import UserError
from upstreams.packed.codes import unpack_codes
from upstreams.packed.file import PackedFile, check_codes, code_bytes, finite
from upstreams.packed.layout import Floats
from upstreams.packed.linear import NATIVE, FloatLinear, LayerTensors, Linear
from upstreams.packed.native import Native
from upstreams.quantization.levels import whole_numbers
from upstreams.quantization.spec import Bits

FLOAT = Bits(32, 32)


class TensorReader:
    """Reads each tensor of a packed file once and checks its shape, type and contents.

    `finish` checks that every tensor was read.
    """

    def __init__(self, packed: PackedFile) -> None:
        self.path, self.layers = packed.path, packed.layers
        self._tensors = packed.tensors
        self._unread_tensors = set(packed.tensors)
        self._unread_layers = set(packed.layers)

    def take(self, name: str, *shape: int, dtype: type = np.float32) -> NDArray[Any]:
        """Return the tensor of that name. Raises UserError if it is missing or has another type or shape."""
        if name not in self._unread_tensors:
            raise UserError(f"{self.path} lacks {name}, which its configuration has")
        self._unread_tensors.discard(name)
        found = self._tensors.dtype(name), self._tensors.shape(name)
        if found != (dtype, shape):
            expected = f"{np.dtype(dtype)} {shape}"
            raise UserError(f"{name} in {self.path} is {found[0]} {found[1]}, but its configuration has {expected}")
        return finite(self.path, name, self._tensors[name])

    def bits(self, name: str) -> Bits:
        """Return the bit widths of a layer or attention product; w32a32 if it is not quantized."""
        self._unread_layers.discard(name)
        return self.layers[name].bits if name in self.layers else FLOAT

    def scale(self, name: str) -> float:
        """Return a scalar tensor. Raises UserError unless it is positive."""
        value = float(self.take(name))
        if value <= 0:
            raise UserError(f"{name} in {self.path} is {value}, but a scale must be positive")
        return value

    def layer(self, name: str, channels: int, outputs: int, columns: int) -> LayerTensors:
        """Return the tensors of a quantized layer with `columns` weights for each output and `channels` inputs."""
        bits, signed = self.bits(name), self.layers[name].signed
        codes = self.take(f"{name}.codes", outputs, code_bytes(columns, bits.weight), dtype=np.uint8)
        check_codes(f"{name}.codes in {self.path}", codes, columns, bits.weight)
        scale_name = f"{name}.weight_scale"
        per_tensor = scale_name in self._unread_tensors and self._tensors.shape(scale_name) == ()
        scale = self.take(scale_name, *(() if per_tensor else (outputs,)))
        if (scale < 0).any():
            raise UserError(f"{name}.weight_scale in {self.path} holds a negative scale")
        alpha = None if bits.activation == 32 else np.array(self.scale(f"{name}.alpha"), np.float32)
        beta = self.take(f"{name}.beta", channels) if bits.activation == 1 and signed else None
        bias = self.take(f"{name}.bias", outputs)
        return LayerTensors(bits, columns, codes, scale, bias, alpha, beta, non_negative=not signed)

    def linear(self, name: str, inputs: int, outputs: int, order: NDArray[np.intp] | None = None) -> AnyLinear:
        """Return a linear layer of any bit width. order: for each input of the caller, its index in the file."""
        if name in self.layers:
            tensors = self.layer(name, inputs, outputs, inputs)
            if tensors.bits in NATIVE and order is None:
                return NATIVE[tensors.bits](tensors)
            return UnpackedLinear(tensors, order)
        weight = self.take(f"{name}.weight", outputs, inputs)
        return FloatLinear(weight if order is None else weight[:, order], self.take(f"{name}.bias", outputs))

    def convolution(self, name: str, *shape: int, groups: int = 1) -> tuple[Floats, Floats, InputQuantizer]:
        """Return a convolution's weight and bias in floating point, and the quantizer of its input.

        shape: (outputs, inputs of a group, ...), the shape of the weight. The quantizer takes channels last.
        """
        if name not in self.layers:
            return self.take(f"{name}.weight", *shape), self.take(f"{name}.bias", shape[0]), InputQuantizer(None)
        tensors = self.layer(name, shape[1] * groups, shape[0], int(np.prod(shape[1:])))
        scale = tensors.scale.reshape(-1, *(1 for _ in shape[1:]))
        return unpacked_weight(tensors).reshape(shape) * scale, tensors.bias, InputQuantizer(tensors)

    def finish(self) -> None:
        """Raise UserError if a tensor or a layer was not read."""
        for name in [*self._unread_tensors, *self._unread_layers]:
            raise UserError(f"{self.path} holds {name}, which its configuration does not have")


class InputQuantizer:
    """Quantizes the input of a convolution; returns it unchanged if it is not quantized."""

    def __init__(self, tensors: LayerTensors | None) -> None:
        self.tensors = tensors

    def __call__(self, x: Floats) -> Floats:
        """(..., channels) -> the same shape."""
        tensors = self.tensors
        if tensors is None or tensors.alpha is None:
            return x
        whole = quantized_input(x, tensors)
        if tensors.beta is not None:  # {-alpha, +alpha} has no zero, but frames of silence must stay zero
            whole[(x == 0).all(-1)] = 0
        return whole * tensors.alpha


class UnpackedLinear:
    """A quantized layer of a bit width that the native kernel does not compute: a float product of whole numbers."""

    def __init__(self, tensors: LayerTensors, order: NDArray[np.intp] | None) -> None:
        self.tensors, self.outputs = tensors, tensors.outputs
        weight = unpacked_weight(tensors)
        self.product = FloatLinear(weight if order is None else weight[:, order], np.zeros(self.outputs, np.float32))
        self.beta = tensors.beta if tensors.beta is None or order is None else tensors.beta[order]

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        tensors = self.tensors
        whole = quantized_input(x, tensors, self.beta)
        scale = tensors.scale if tensors.alpha is None else tensors.scale * tensors.alpha
        return self.product(whole, kernel) * scale + tensors.bias


AnyLinear = Linear | FloatLinear | UnpackedLinear


def unpacked_weight(tensors: LayerTensors) -> Floats:
    """Return a layer's weights as whole numbers (outputs, columns) in float32."""
    return unpack_codes(tensors.codes, tensors.inputs, tensors.bits.weight, np).astype(np.float32)


def quantized_input(x: Floats, tensors: LayerTensors, beta: Floats | None = None) -> Floats:
    """Return the whole numbers of which a layer's quantized input is alpha times; x itself if the input is float.

    beta: the shift of each channel in the order of x, if it is not the order of the file.
    """
    if tensors.alpha is None:
        return x
    beta = tensors.beta if beta is None else beta
    x = x if beta is None else x + beta
    return whole_numbers(x, tensors.bits.activation, not tensors.non_negative, tensors.alpha, np)
