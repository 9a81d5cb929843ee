"""Read the tensors of a packed file one at a time. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.packed.codes import unpack_codes
from upstreams.packed.file import PackedFile
from upstreams.packed.layout import Floats
from upstreams.packed.linear import NATIVE, FloatLinear, LayerTensors, Linear
from upstreams.packed.native import Native
from upstreams.quantization.levels import whole_numbers
from upstreams.quantization.spec import FLOAT, Bits


class TensorReader:
    """Reads each tensor of a packed file once. The file is valid (upstreams/packed/validation.py)."""

    def __init__(self, packed: PackedFile) -> None:
        self.layers, self._tensors = packed.layers, packed.tensors

    def take(self, name: str) -> NDArray[Any]:
        """Return the tensor of that name."""
        return self._tensors[name]

    def bits(self, name: str) -> Bits:
        """Return the bit widths of a layer or attention product; w32a32 if it is not quantized."""
        return self.layers[name].bits if name in self.layers else FLOAT

    def scale(self, name: str) -> float:
        """Return a scalar tensor."""
        return float(self.take(name))

    def layer(self, name: str, columns: int) -> LayerTensors:
        """Return the tensors of a quantized layer with `columns` weights for each output."""
        layer = self.layers[name]
        alpha, beta = (
            self.take(f"{name}.{part}") if f"{name}.{part}" in self._tensors else None for part in ("alpha", "beta")
        )
        codes, scale, bias = (self.take(f"{name}.{part}") for part in ("codes", "weight_scale", "bias"))
        return LayerTensors(layer.bits, columns, codes, scale, bias, alpha, beta, non_negative=not layer.signed)

    def linear(self, name: str, inputs: int, order: NDArray[np.intp] | None = None) -> AnyLinear:
        """Return a linear layer of any bit width. order: for each input of the caller, its index in the file."""
        if name in self.layers:
            tensors = self.layer(name, inputs)
            if tensors.bits in NATIVE and order is None:
                return NATIVE[tensors.bits](tensors)
            return UnpackedLinear(tensors, order)
        weight, bias = self.take(f"{name}.weight"), f"{name}.bias"
        zeros = np.zeros(len(weight), np.float32)
        return FloatLinear(
            weight if order is None else weight[:, order], self.take(bias) if bias in self._tensors else zeros
        )

    def convolution(self, name: str, *shape: int) -> tuple[Floats, Floats, InputQuantizer]:
        """Return a convolution's weight and bias in floating point, and the quantizer of its input.

        shape: (outputs, inputs of a group, ...), the shape of the weight. The quantizer takes channels last.
        """
        if name not in self.layers:
            return self.take(f"{name}.weight"), self.take(f"{name}.bias"), InputQuantizer(None)
        tensors = self.layer(name, math.prod(shape[1:]))
        scale = tensors.scale.reshape(-1, *(1 for _ in shape[1:]))
        return unpacked_weight(tensors).reshape(shape) * scale, tensors.bias, InputQuantizer(tensors)


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
