"""Modules with quantized weights and activations. Their parameters keep the names of the float modules."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from upstreams.encoders.convolution import FrameConvolution, convolve_frames
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
    """A linear layer with quantized weights and, unless `bits.activation` is 32, quantized input.

    It takes over the float layer's `weight` and `bias` in full precision. per_channel: one weight scale per output.
    non_negative: the input comes from a ReLU, and its levels start at 0.
    """

    def __init__(self, linear: nn.Linear, bits: Bits, per_channel: bool = False, non_negative: bool = False) -> None:
        # On the meta device, because the parameters are replaced at once.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.bits = bits
        self.weight_quantizer = _weight_quantizer(self.weight, bits.weight, per_channel)
        self.input = _input_quantizer(self.in_features, bits.activation, non_negative)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        x = x if self.input is None else self.input(x)
        return nn.functional.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv1d(nn.Module):
    """A convolution of any stride and grouping with quantized weights and input.

    It takes over the parameters of an nn.Conv1d or nn.Conv2d. per_channel and non_negative as in QuantLinear.
    """

    def __init__(
        self, convolution: nn.Conv1d | nn.Conv2d, bits: Bits, per_channel: bool = False, non_negative: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        if isinstance(convolution, FrameConvolution):
            self.convolve: Callable[..., Tensor] = convolve_frames
        else:
            self.convolve = nn.functional.conv1d if isinstance(convolution, nn.Conv1d) else nn.functional.conv2d
        self.stride, self.padding, self.groups = convolution.stride, convolution.padding, convolution.groups
        self.bits = bits
        self.weight_quantizer = _weight_quantizer(self.weight, bits.weight, per_channel)
        self.input = _input_quantizer(convolution.in_channels, bits.activation, non_negative)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, inputs, frames[, width]), zero where padded, to (batch, outputs, frames[, width])."""
        return self.convolve(
            self.quantized_input(x),
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,
            groups=self.groups,
        )

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input of the filters, shaped like x: quantized, or x itself if activations are float."""
        if self.input is None:
            return x
        quantized = self.input(x.movedim(1, -1)).movedim(-1, 1)
        if self.input.beta is None:
            return quantized
        # {-alpha, +alpha} has no zero, but padding must be zero for the frames whose filters reach it.
        return quantized.masked_fill((x == 0).all(1, keepdim=True), 0.0)


class QuantMatmul(nn.Module):
    """The two products of attention on quantized operands: signed queries, keys and values, unsigned probabilities.

    The softmax and the bias of the scores are float.
    """

    def __init__(self, dim: int, bits: int) -> None:
        """dim: width of all heads together. bits: of every operand."""
        super().__init__()
        self.bits = Bits(bits, bits)
        self.query = ActivationQuantizer(dim, bits, signed=True)
        self.key = ActivationQuantizer(dim, bits, signed=True)
        self.value = ActivationQuantizer(dim, bits, signed=True)
        self.probability = ActivationQuantizer(dim, bits, signed=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the context, shaped like query. Arguments as in `ScaledDotProduct.forward`."""
        scores = _product(self.query, query, self.key, key, transpose=True) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias
        probability = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return _product(self.probability, probability, self.value, value, transpose=False)


def _product(left: ActivationQuantizer, x: Tensor, right: ActivationQuantizer, y: Tensor, transpose: bool) -> Tensor:
    """Return left(x) @ right(y), with right(y) transposed if `transpose`, computed on whole numbers.

    float32 sums of whole numbers are exact below 2^24, so that values that cancel give exactly 0. With rounding errors,
    which depend on the batch's shape, the sign that the next quantizer takes would differ between batches.
    """
    second, beta = _whole_numbers(right, y)
    first, alpha = _whole_numbers(left, x)
    return first @ (second.transpose(-1, -2) if transpose else second) * (alpha * beta)


def _whole_numbers(quantizer: ActivationQuantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return quantizer(x) as whole numbers, and the scale to multiply them by.

    The scale's gradient comes from the quantizer alone: dividing by the scale and multiplying by it adds none.
    """
    if quantizer.bits == 1:
        scale = quantizer.scale.detach()
        return quantizer(x) / scale, scale  # alpha / alpha is exactly 1 without rounding
    quantized = quantizer(x)
    scale = quantizer.scale.detach()  # read after the call, which may calibrate it
    return WholeNumbers.apply(quantized, scale), scale
