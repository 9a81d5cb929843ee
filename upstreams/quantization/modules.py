"""Modules that compute with quantized weights and activations, under the float modules' parameter names."""

from __future__ import annotations

import math

from torch import Tensor, nn

from upstreams.quantization.quantizers import ActivationQuantizer, WeightBinarizer, WeightQuantizer, WholeNumbers
from upstreams.quantization.spec import Bits


def _weight_quantizer(weight: Tensor, bits: int, per_channel: bool) -> nn.Module:
    if bits == 32:
        return nn.Identity()
    return WeightBinarizer(per_channel) if bits == 1 else WeightQuantizer(weight.shape, bits, per_channel)


def _input_quantizer(channels: int, bits: int, non_negative: bool) -> ActivationQuantizer | None:
    if bits == 32:
        return None
    return ActivationQuantizer(channels, bits, signed=not non_negative, shift=bits == 1 and not non_negative)


class QuantLinear(nn.Linear):
    """A linear layer with quantized weights, and quantized input unless `bits.activation` is 32.

    It takes over the float layer's `weight` and `bias`, under their names and in full precision. per_channel: a scale
    for each output's weights. non_negative: the input comes out of a ReLU, so its levels start at 0.
    """

    def __init__(self, linear: nn.Linear, bits: Bits, per_channel: bool = False, non_negative: bool = False) -> None:
        # On the meta device, as the parameters are replaced at once.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.bits = bits
        self.weight_quantizer = _weight_quantizer(self.weight, bits.weight, per_channel)
        self.input = _input_quantizer(self.in_features, bits.activation, non_negative)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        x = x if self.input is None else self.input(x)
        return nn.functional.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv1d(nn.Module):
    """A convolution along frames, of any stride and grouping, with quantized weights and input.

    It takes over the parameters of an nn.Conv1d, or of an nn.Conv2d, whose kernel this project's encoders make
    (frames, 1) for speed. per_channel and non_negative as in QuantLinear.
    """

    def __init__(
        self, convolution: nn.Conv1d | nn.Conv2d, bits: Bits, per_channel: bool = False, non_negative: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.convolve = nn.functional.conv1d if isinstance(convolution, nn.Conv1d) else nn.functional.conv2d
        self.stride, self.padding, self.groups = convolution.stride, convolution.padding, convolution.groups
        self.bits = bits
        self.weight_quantizer = _weight_quantizer(self.weight, bits.weight, per_channel)
        self.input = _input_quantizer(convolution.in_channels, bits.activation, non_negative)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, frames) or (batch, inputs, frames, any), zero where padded -> the same with outputs."""
        return self.convolve(
            self.quantized_input(x),
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,
            groups=self.groups,
        )

    def quantized_input(self, x: Tensor) -> Tensor:
        """What the filters run over: x as `forward` takes it, quantized where the input has few bits."""
        if self.input is None:
            return x
        quantized = self.input(x.movedim(1, -1)).movedim(-1, 1)
        if self.input.beta is None:
            return quantized
        # {-alpha, +alpha} has no zero, but neighbours must find none but zeros behind an utterance's end.
        return quantized.masked_fill((x == 0).all(1, keepdim=True), 0.0)


class QuantMatmul(nn.Module):
    """Attention's two products on quantized operands: Q, K and V signed, probabilities from 0 up.

    Nothing but its operands is quantized: the softmax and the scores' bias are float.
    """

    def __init__(self, dim: int, bits: int) -> None:
        """dim: of all heads together; bits of every operand."""
        super().__init__()
        self.bits = Bits(bits, bits)
        self.query = ActivationQuantizer(dim, bits, signed=True)
        self.key = ActivationQuantizer(dim, bits, signed=True)
        self.value = ActivationQuantizer(dim, bits, signed=True)
        self.probability = ActivationQuantizer(dim, bits, signed=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """query (n, heads, q, d), key, value (n, heads, k, d), visible (n, 1, 1 or q, k) bool -> like query.

        bias: (n, heads, q, k), added to the scores.
        """
        scores = _product(self.query, query, self.key, key, transpose=True) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias
        probability = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return _product(self.probability, probability, self.value, value, transpose=False)


def _product(left: ActivationQuantizer, x: Tensor, right: ActivationQuantizer, y: Tensor, transpose: bool) -> Tensor:
    """left(x) @ right(y), or its transpose, through whole numbers, which float32 adds up exactly below 2^24.

    As many +alpha as -alpha then add up to exactly 0, whose sign the next quantizer takes; rounding, which depends on
    the batch's shape, would decide it otherwise.
    """
    second, beta = _whole(right, y)
    first, alpha = _whole(left, x)
    return first @ (second.transpose(-1, -2) if transpose else second) * (alpha * beta)


def _whole(quantizer: ActivationQuantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """What quantizer(x) is as whole numbers, and what to multiply them by.

    The scale learns through the quantizer: dividing by it and multiplying again has no gradient of its own.
    """
    if quantizer.bits == 1:
        scale = quantizer.scale.detach()
        return quantizer(x) / scale, scale  # alpha / alpha needs no rounding to be 1
    quantized = quantizer(x)
    scale = quantizer.scale.detach()  # after the call, which may have been the one that calibrated it
    return WholeNumbers.apply(quantized, scale), scale
