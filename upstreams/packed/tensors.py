"""A packed file's tensors, taken one by one by what needs them, with what is wrong told at once. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.errors import UserError
from upstreams.packed.codes import unpack_codes
from upstreams.packed.file import PackedFile, check_codes, code_bytes, finite
from upstreams.packed.kernels import Floats, Native
from upstreams.packed.linear import NATIVE, FloatLinear, Linear, Packed
from upstreams.quantization.levels import whole_numbers
from upstreams.quantization.spec import Bits

FLOAT = Bits(32, 32)


class Tensors:
    """Checks shape, type and contents of every tensor; none may be missing and none left over."""

    def __init__(self, packed: PackedFile) -> None:
        self.path, self.layers = packed.path, packed.layers
        self._stored = packed.tensors
        self._left = set(packed.tensors)
        self._unread = set(packed.layers)

    def take(self, name: str, *shape: int, dtype: type = np.float32) -> NDArray[Any]:
        """The tensor of that name; raises UserError when it is not there or is another one."""
        if name not in self._left:
            raise UserError(f"{self.path} lacks {name}, which its configuration has")
        self._left.discard(name)
        has = self._stored.dtype(name), self._stored.shape(name)
        if has != (dtype, shape):
            wanted = f"{np.dtype(dtype)} {shape}"
            raise UserError(f"{name} in {self.path} is {has[0]} {has[1]}, but its configuration has {wanted}")
        return finite(self.path, name, self._stored[name])

    def bits(self, name: str) -> Bits:
        """Bits of a layer or attention product, w32a32 where it is not quantized."""
        self._unread.discard(name)
        return self.layers[name].bits if name in self.layers else FLOAT

    def scale(self, name: str) -> float:
        """A positive number."""
        value = float(self.take(name))
        if value <= 0:
            raise UserError(f"{name} in {self.path} is {value}, but a scale is positive")
        return value

    def packed(self, name: str, channels: int, outputs: int, columns: int) -> Packed:
        """A quantized layer of `columns` weights for each output and `channels` of input."""
        bits, signed = self.bits(name), self.layers[name].signed
        codes = self.take(f"{name}.codes", outputs, code_bytes(columns, bits.weight), dtype=np.uint8)
        check_codes(f"{name}.codes in {self.path}", codes, columns, bits.weight)
        scale_name = f"{name}.weight_scale"
        one_a_tensor = scale_name in self._left and self._stored.shape(scale_name) == ()
        scale = self.take(scale_name, *(() if one_a_tensor else (outputs,)))
        if (scale < 0).any():
            raise UserError(f"{name}.weight_scale in {self.path} holds a negative scale")
        alpha = None if bits.activation == 32 else np.array(self.scale(f"{name}.alpha"), np.float32)
        beta = self.take(f"{name}.beta", channels) if bits.activation == 1 and signed else None
        return Packed(bits, columns, codes, scale, self.take(f"{name}.bias", outputs), alpha, beta, not signed)

    def linear(self, name: str, inputs: int, outputs: int, order: NDArray[np.intp] | None = None) -> AnyLinear:
        """A linear layer of any width. order: how the inputs that it is given lie in those of the file."""
        if name in self.layers:
            packed = self.packed(name, inputs, outputs, inputs)
            if packed.bits in NATIVE and order is None:
                return NATIVE[packed.bits](packed)
            return UnpackedLinear(packed, order)
        weight = self.take(f"{name}.weight", outputs, inputs)
        return FloatLinear(weight if order is None else weight[:, order], self.take(f"{name}.bias", outputs))

    def convolution(self, name: str, *shape: int, groups: int = 1) -> tuple[Floats, Floats, InputQuantizer]:
        """Weight of that shape (outputs, inputs of a group, ...) and bias in floating point, and the input's quantizer.

        It takes the input with its channels last.
        """
        if name not in self.layers:
            return self.take(f"{name}.weight", *shape), self.take(f"{name}.bias", shape[0]), InputQuantizer(None)
        packed = self.packed(name, shape[1] * groups, shape[0], int(np.prod(shape[1:])))
        across = packed.scale.reshape(-1, *(1 for _ in shape[1:]))
        return unpacked_weight(packed).reshape(shape) * across, packed.bias, InputQuantizer(packed)

    def finish(self) -> None:
        """Raises UserError when something was not taken."""
        for name in [*self._left, *self._unread]:
            raise UserError(f"{self.path} holds {name}, which its configuration does not have")


class InputQuantizer:
    """What a convolution runs over: its input on the levels of its quantizer, or as it is where there is none."""

    def __init__(self, packed: Packed | None) -> None:
        self.packed = packed

    def __call__(self, x: Floats) -> Floats:
        """(..., channels) -> the same shape."""
        if self.packed is None or self.packed.alpha is None:
            return x
        whole = quantized_input(x, self.packed)
        if self.packed.beta is not None:  # {-alpha, +alpha} has no zero, which silence is to stay
            whole[(x == 0).all(-1)] = 0
        return whole * self.packed.alpha


class UnpackedLinear:
    """A quantized layer of a width that the native kernel does not know, in floating point on whole numbers."""

    def __init__(self, packed: Packed, order: NDArray[np.intp] | None) -> None:
        self.packed = packed
        weight = unpacked_weight(packed)
        self.product = FloatLinear(weight if order is None else weight[:, order], np.zeros(packed.outputs, np.float32))
        self.beta = packed.beta if packed.beta is None or order is None else packed.beta[order]
        self.outputs = packed.outputs

    def __call__(self, x: Floats, kernel: Native) -> Floats:
        """(rows, inputs) -> (rows, outputs)."""
        whole = quantized_input(x, self.packed, self.beta)
        scale = self.packed.scale if self.packed.alpha is None else self.packed.scale * self.packed.alpha
        return self.product(whole, kernel) * scale + self.packed.bias


AnyLinear = Linear | FloatLinear | UnpackedLinear


def unpacked_weight(packed: Packed) -> Floats:
    """Return a layer's weights as whole numbers (outputs, columns) in float32."""
    return unpack_codes(packed.codes, packed.inputs, packed.bits.weight, np).astype(np.float32)


def quantized_input(x: Floats, packed: Packed, beta: Floats | None = None) -> Floats:
    """Return the whole numbers of which a layer's quantized input is alpha times; x itself if the input is float.

    beta: the shift of each channel in the order of x, if it is not the order of the file.
    """
    if packed.alpha is None:
        return x
    beta = packed.beta if beta is None else beta
    x = x if beta is None else x + beta
    return whole_numbers(x, packed.bits.activation, not packed.non_negative, packed.alpha, np)
