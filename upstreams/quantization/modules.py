"""Modules that compute with quantized weights and activations, under the float modules' parameter names."""

from __future__ import annotations

import math

from torch import Tensor, nn

from upstreams.quantization.quantizers import ActivationQuantizer, BinarizeWeight
from upstreams.quantization.spec import Bits


class QuantLinear(nn.Linear):
    """A linear layer with 1-bit weights, and 1-bit input when `bits.activation` is 1.

    `weight` and `bias` keep their names and full-precision values, so a float checkpoint loads.
    non_negative: the input comes out of a ReLU, so its two levels are {0, alpha} instead of {-alpha, +alpha}.
    """

    def __init__(self, inputs: int, outputs: int, bits: Bits, non_negative: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.bits = bits
        self.input = (
            ActivationQuantizer(inputs, signed=not non_negative, shift=not non_negative)
            if bits.activation == 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if self.input is not None:
            x = self.input(x)
        weight = BinarizeWeight.apply(self.weight) if self.bits.weight == 1 else self.weight
        return nn.functional.linear(x, weight, self.bias)


class QuantProduct(nn.Module):
    """Attention's two products on 1-bit operands: Q, K and V in {-alpha, +alpha}, probabilities in {0, alpha}."""

    def __init__(self, head_dim: int, heads: int) -> None:
        super().__init__()
        self.query = ActivationQuantizer(head_dim * heads, signed=True, shift=False)
        self.key = ActivationQuantizer(head_dim * heads, signed=True, shift=False)
        self.value = ActivationQuantizer(head_dim * heads, signed=True, shift=False)
        self.probability = ActivationQuantizer(head_dim * heads, signed=False, shift=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """query (n, heads, q, d), key, value (n, heads, k, d), visible (n, 1, 1 or q, k) bool -> like query.

        bias: (n, heads, q, k), added to the scores.
        """
        scores = _product(self.query, query, self.key, key, transpose=True) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias
        probability = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return _product(self.probability, probability, self.value, value, transpose=False)


def _product(left: ActivationQuantizer, x: Tensor, right: ActivationQuantizer, y: Tensor, transpose: bool) -> Tensor:
    """left(x) @ right(y), or its transpose, through whole numbers.

    As many +alpha as -alpha then add up to exactly 0, whose sign the next quantizer takes; rounding, which depends on
    the batch's shape, would decide it otherwise.
    """
    # The scales learn through the quantizers; dividing by them and multiplying again has no gradient of its own.
    alpha, beta = left.scale.detach(), right.scale.detach()
    signs = right(y) / beta
    return (left(x) / alpha) @ (signs.transpose(-1, -2) if transpose else signs) * (alpha * beta)
