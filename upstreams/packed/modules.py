"""Packed layers as torch modules, with the names of the float layers: the twin of the compiled runtime.

They unpack their weights and multiply in torch, with the same whole numbers as results. They have no gradient.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from upstreams.errors import UserError
from upstreams.packed.codes import code_bytes, unpack_codes
from upstreams.quantization import levels
from upstreams.quantization.spec import Bits


def whole_numbers(x: Tensor, bits: int, signed: bool, alpha: Tensor) -> Tensor:
    """Return `quantization.levels.whole_numbers` of x. Raises UserError on NaN, as the runtime does."""
    if bool(x.isnan().any()):
        raise UserError(levels.NAN)
    return levels.whole_numbers(x, bits, signed, alpha, torch)


def pack_codes(whole: Tensor, bits: int) -> Tensor:
    """Return codes (outputs, bytes) uint8 of whole numbers (outputs, columns) of `bits` bits; one bit: +1 and -1."""
    offset = 1 if bits == 1 else 2 ** (bits - 1)
    codes = ((whole.to(torch.int16) + offset) >> (bits == 1)).to(torch.uint8)
    each = 8 // bits
    codes = nn.functional.pad(codes, (0, -codes.shape[1] % each)).unflatten(1, (-1, each))
    return (codes << (torch.arange(each, device=codes.device, dtype=torch.uint8) * bits)).sum(2, dtype=torch.uint8)


@functools.cache
def _has_fast_int8() -> bool:
    # A private operator; on other processors it is a plain loop.
    has_operator = hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()
    return has_operator and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class PackedLayer(nn.Module):
    """Codes, scales and bias of a packed layer, and the quantization of its input."""

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor
    alpha: Tensor | None
    beta: Tensor | None

    def __init__(self, outputs: int, columns: int, channels: int, bits: Bits, per_channel: bool, signed: bool) -> None:
        """columns: weights of an output; channels: of the input."""
        super().__init__()
        self.columns, self.bits, self.signed = columns, bits, signed
        self.register_buffer("codes", torch.zeros(outputs, code_bytes(columns, bits.weight), dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.zeros(outputs if per_channel else ()))
        self.register_buffer("bias", torch.zeros(outputs))
        quantized = bits.activation < 32
        self.register_buffer("alpha", torch.ones(()) if quantized else None)
        self.register_buffer("beta", torch.zeros(channels) if bits.activation == 1 and signed else None)

    def weight(self) -> Tensor:
        """Return the weights as whole numbers (outputs, columns), int8."""
        return unpack_codes(self.codes, self.columns, self.bits.weight, torch)

    def quantized_input(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return (..., channels) as whole numbers and their scale; x and 1 if the input is not quantized."""
        if self.alpha is None:
            return x, 1.0
        x = x if self.beta is None else x + self.beta
        return whole_numbers(x, self.bits.activation, self.signed, self.alpha), self.alpha


class PackedLinear(PackedLayer):
    """A linear layer of packed weights of 1, 2, 4 or 8 bits."""

    def __init__(self, inputs: int, outputs: int, bits: Bits, per_channel: bool, signed: bool) -> None:
        super().__init__(outputs, inputs, inputs, bits, per_channel, signed)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        whole, alpha = self.quantized_input(x)
        if self.bits.activation <= 8 and x.device.type == "cpu" and _has_fast_int8():
            sums = self._int8_sums(whole.reshape(-1, self.columns)).to(x.dtype).unflatten(0, x.shape[:-1])
        else:
            sums = nn.functional.linear(whole, self.weight().to(x.dtype))
        return sums * (self.weight_scale * alpha) + self.bias

    def _int8_sums(self, whole: Tensor) -> Tensor:
        """Return the product of whole numbers (rows, inputs) with the weights, (rows, outputs) int32."""
        weight = self.weight()
        if self.signed or self.bits.activation < 8:
            return torch._int_mm(whole.to(torch.int8), weight.T)
        # 0 to 255 does not fit into int8: subtract 128, then add 128 times the sum of each output's weights.
        return torch._int_mm((whole - 128).to(torch.int8), weight.T) + 128 * weight.sum(1, dtype=torch.int32)


class PackedConv1d(PackedLayer):
    """A convolution along frames with packed weights, computed in torch. Arguments: attributes of `QuantConv1d`."""

    def __init__(
        self,
        shape: torch.Size,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        groups: int,
        bits: Bits,
        per_channel: bool,
        signed: bool,
    ) -> None:
        super().__init__(shape[0], math.prod(shape[1:]), shape[1] * groups, bits, per_channel, signed)
        self.shape, self.stride, self.padding, self.groups = shape, stride, padding, groups

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, frames) or (batch, inputs, frames, any), zero where padded -> the same with outputs."""
        silent = (x == 0).all(1, keepdim=True) if self.beta is not None else None  # as QuantConv1d
        whole, alpha = self.quantized_input(x.movedim(1, -1))
        whole = whole.movedim(-1, 1)
        whole = whole if silent is None else whole.masked_fill(silent, 0.0)
        convolve = nn.functional.conv1d if len(self.shape) == 3 else nn.functional.conv2d
        weight = self.weight().to(x.dtype).view(self.shape)
        sums = convolve(whole, weight, None, self.stride, self.padding, groups=self.groups)
        broadcast = (-1, *(1 for _ in self.shape[2:]))
        scale = self.weight_scale * alpha
        return sums * (scale.view(broadcast) if scale.ndim else scale) + self.bias.view(broadcast)


class PackedMatmul(nn.Module):
    """The two products of attention on quantized operands. The buffers are the scales of the operands."""

    query: Tensor
    key: Tensor
    value: Tensor
    probability: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        for name in ("query", "key", "value", "probability"):
            self.register_buffer(name, torch.ones(()))

    @torch.no_grad()
    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """query (n, heads, q, d), key, value (n, heads, k, d), visible (n, 1, 1 or q, k) bool -> like query.

        bias: (n, heads, q, k), added to the scores.
        """
        left = whole_numbers(query, self.bits, True, self.query)
        right = whole_numbers(key, self.bits, True, self.key)
        scores = left @ right.transpose(-1, -2) * (self.query * self.key) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias
        probability = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        chosen = whole_numbers(probability, self.bits, False, self.probability)
        return chosen @ whole_numbers(value, self.bits, True, self.value) * (self.probability * self.value)
