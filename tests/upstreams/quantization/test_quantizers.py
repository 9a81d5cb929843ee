"""Quantizers against their formulas, in float64 and at every boundary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import (
    ActivationQuantizer,
    BinarizeSigned,
    BinarizeWeight,
    LearnedStep,
    Quantizer,
    WeightBinarizer,
    WeightQuantizer,
    WholeNumbers,
    sign,
)
from upstreams.quantization.spec import Bits


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_sign_has_two_levels() -> None:
    assert sign(torch.tensor([-1.0, -0.0, 0.0, 2.0])).tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_weight_is_centred_sign_times_mean_magnitude_and_gradient_passes() -> None:
    weight = torch.tensor([[1.0, 2.0], [-4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    output = BinarizeWeight.apply(weight, False)
    # mean 1 (so that the weight 1 lies on the threshold and counts as +), mean magnitude 3
    assert output.tolist() == [[3.0, 3.0], [-3.0, 3.0]]
    assert WeightBinarizer(False).positive(weight).tolist() == [[True, True], [False, True]]
    grad = torch.randn(2, 2, dtype=torch.float64)
    output.backward(grad)
    assert torch.equal(weight.grad, grad)


def test_weight_scales_of_each_output_channel() -> None:
    weight = torch.tensor([[[1.0], [3.0]], [[-4.0], [6.0]]], dtype=torch.float64, requires_grad=True)
    output = BinarizeWeight.apply(weight, True)
    # means 2 and 1, mean magnitudes 2 and 5
    assert output.flatten().tolist() == [-2.0, 2.0, -5.0, 5.0]
    grad = torch.randn_like(output)
    output.backward(grad)
    assert torch.equal(weight.grad, grad)


def test_signed_activation_gradients_at_every_boundary() -> None:
    x, alpha = f64(-2.0, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, 2.0), torch.tensor(1.5).double().requires_grad_()
    output = BinarizeSigned.apply(x, alpha, 0.25)
    assert output.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5, 1.5, 1.5]
    output.backward(torch.arange(1.0, 9.0, dtype=torch.float64))
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]  # |x| <= alpha, the boundary included
    assert float(alpha.grad) == pytest.approx(0.25 * (-1 - 2 - 3 + 4 + 5 + 6 + 7 + 8))


@pytest.mark.parametrize(
    ("low", "high", "ratios", "levels", "slopes"),
    [
        # {0, alpha}: the half rounds to even, which is 0
        (0, 1, [-0.5, 0, 0.25, 0.5, 0.75, 1, 1.25], [0, 0, 0, 0, 1, 1, 1], [0, 0, -0.25, -0.5, 0.25, 0, 1]),
        # 2 bits signed: below, at and above either end, and the halves between
        (-2, 1, [-3, -2, -1.5, -0.5, 0.5, 1, 1.5], [-2, -2, -2, 0, 0, 1, 1], [-2, 0, -0.5, 0.5, -0.5, 0, 1]),
        # 2 bits from 0 up
        (0, 3, [-1, 0, 1.5, 2.5, 3, 3.25], [0, 0, 2, 2, 3, 3], [0, 0, 0.5, -0.5, 0, 3]),
        (-8, 7, [-8.5, -8, 7, 7.5], [-8, -8, 7, 7], [-8, 0, 0, 7]),
        (-128, 127, [-129, -128, 0.25, 127, 127.25], [-128, -128, 0, 127, 127], [-128, 0, -0.25, 0, 127]),
        (0, 255, [-1, 0, 255, 256], [0, 0, 255, 255], [0, 0, 0, 255]),
    ],
)
def test_learned_step_gradients_at_every_boundary(
    low: int, high: int, ratios: list[float], levels: list[float], slopes: list[float]
) -> None:
    x, alpha = f64(*(2.0 * r for r in ratios)), torch.tensor(2.0).double().requires_grad_()
    output = LearnedStep.apply(x, alpha, low, high, 0.5)
    assert output.tolist() == [2.0 * level for level in levels]
    grad = torch.arange(1.0, len(ratios) + 1, dtype=torch.float64)
    output.backward(grad)
    assert x.grad.tolist() == [g if low <= r <= high else 0 for g, r in zip(grad.tolist(), ratios, strict=True)]
    assert float(alpha.grad) == pytest.approx(0.5 * sum(g * s for g, s in zip(grad.tolist(), slopes, strict=True)))


def test_learned_step_with_a_scale_a_channel_equals_channels_apart() -> None:
    torch.manual_seed(0)
    weight, alpha = torch.randn(3, 4, 2).double().requires_grad_(), f64(0.2, 0.5, 1.0)
    output = LearnedStep.apply(weight, alpha.view(3, 1, 1), -2, 1, 0.5)
    grad = torch.randn_like(output)
    output.backward(grad)
    for row in range(3):
        w, a = weight[row].detach().clone().requires_grad_(), alpha[row].detach().clone().requires_grad_()
        part = LearnedStep.apply(w, a, -2, 1, 0.5)
        part.backward(grad[row])
        assert torch.equal(part, output[row]) and torch.equal(w.grad, weight.grad[row])
        torch.testing.assert_close(a.grad, alpha.grad[row])


def test_whole_numbers_are_whole_and_their_gradient_is_that_of_the_quotient() -> None:
    alpha = torch.tensor(0.1)
    x = (alpha * torch.arange(-128.0, 128)).requires_grad_()
    assert not torch.equal(x / alpha, torch.arange(-128.0, 128))  # the reason for the rounding
    output = WholeNumbers.apply(x, alpha)
    assert torch.equal(output, torch.arange(-128.0, 128))
    output.backward(torch.ones(256))
    assert torch.equal(x.grad, torch.full((256,), 1.0) / alpha)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_do_not_depend_on_batch_size_or_padding(bits: int, signed: bool) -> None:
    """Copies of the batch and padding do not change the gradients of a loss that is a mean over valid frames."""
    torch.manual_seed(0)
    quantizer = ActivationQuantizer(8, bits, signed, shift=bits == 1 and signed).double()
    x, target = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    quantizer.calibrate(x)
    grads = []
    for repeat, padding in ((1, 0), (4, 0), (1, 7)):
        quantizer.zero_grad()
        padded = nn.functional.pad(x.repeat(repeat, 1, 1), (0, 0, 0, padding))
        error = quantizer(padded)[:, :5] - target.repeat(repeat, 1, 1)
        error.square().mean().backward()
        grads.append([p.grad.clone() for p in quantizer.parameters()])
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])


@pytest.mark.parametrize(
    ("bits", "signed", "positive"), [(1, True, 1), (1, False, 1), (2, True, 1), (2, False, 3), (4, True, 7)]
)
def test_calibration_and_gradient_scale_by_the_formula(bits: int, signed: bool, positive: int) -> None:
    quantizer = ActivationQuantizer(4, bits, signed)
    x = torch.rand(3, 7, 4)
    assert not bool(quantizer.calibrated)
    quantizer.calibrate(x)
    assert float(quantizer.alpha.detach()) == pytest.approx(
        (2 if signed else 4) * float(x.abs().mean()) / math.sqrt(positive)
    )
    assert bool(quantizer.calibrated) and "calibrated" in quantizer.state_dict()
    assert quantizer.gradient_scale == pytest.approx(1 / math.sqrt(4 * positive))
    assert WeightQuantizer((6, 5), 4, False).gradient_scale == pytest.approx(1 / math.sqrt(30 * 7))
    assert WeightQuantizer((6, 5), 4, True).gradient_scale == pytest.approx(1 / math.sqrt(5 * 7))


@pytest.mark.parametrize("make", [lambda: ActivationQuantizer(4, 8, True), lambda: ActivationQuantizer(4, 8, False)])
def test_eight_bit_scales_are_of_least_squared_error(make: Callable[[], Quantizer]) -> None:
    """No other scale has a smaller error; one outlier among many values is clipped."""
    torch.manual_seed(0)
    quantizer = make()
    x = torch.randn(5000, 4).abs()
    x[0, 0] = 12.0
    quantizer.calibrate(x)
    chosen = float(quantizer.alpha.detach())

    def error(alpha: float) -> float:
        steps = (x / alpha).round().clamp(quantizer.low, quantizer.high)
        return float((alpha * steps - x).double().square().sum())

    others = [error(chosen * factor) for factor in torch.linspace(0.3, 3.0, 200).tolist()]
    assert error(chosen) < 1.03 * min(others)
    assert chosen < 12.0 / quantizer.high


def test_a_channel_of_zeros_gets_a_scale_and_stays_zero() -> None:
    quantizer = WeightQuantizer((2, 5), 8, True)
    weight = torch.cat([torch.zeros(1, 5), torch.randn(1, 5)])
    quantizer.calibrate(weight)
    output = quantizer(weight)
    assert torch.isfinite(output).all() and (output[0] == 0).all() and (output[1] != 0).any()


@torch.no_grad()
def test_quantized_linear_against_loops() -> None:
    torch.manual_seed(1)
    layer = QuantLinear(nn.Linear(6, 3), Bits(1, 1))
    x = torch.randn(4, 6)
    assert layer.input is not None and layer.input.beta is not None
    layer.input.beta.normal_()
    layer.input.calibrate(x)
    output = layer(x)
    alpha, beta, w = float(layer.input.alpha), layer.input.beta.tolist(), layer.weight.flatten().tolist()
    mean, scale = sum(w) / len(w), sum(map(abs, w)) / len(w)
    for row in range(4):
        for column in range(3):
            total = float(layer.bias[column])
            for k in range(6):
                bit = alpha if float(x[row, k]) + beta[k] >= 0 else -alpha
                total += bit * (scale if float(layer.weight[column, k]) >= mean else -scale)
            assert math.isclose(float(output[row, column]), total, abs_tol=1e-5)


CONVOLUTIONS = {
    "pointwise": nn.Conv1d(6, 4, 1),
    "strided": nn.Conv1d(6, 4, 5, stride=2, padding=2),
    "grouped": nn.Conv1d(6, 4, 3, padding=1, groups=2, bias=False),
    "depthwise": nn.Conv1d(6, 6, 3, padding=1, groups=6),
    "depthwise of this project": nn.Conv2d(6, 6, (3, 1), padding=(1, 0), groups=6),
}


@pytest.mark.parametrize("bits", ["w1a1", "w2a2", "w4a1", "w8a8", "w1a32"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_quantized_convolutions_are_convolutions_of_quantized_operands(name: str, bits: str) -> None:
    """Parameters have the names of the float layer; silent frames stay silent."""
    torch.manual_seed(2)
    plain = CONVOLUTIONS[name]
    layer = QuantConv1d(plain, Bits.parse(bits), per_channel="depthwise" in name)
    assert {"weight", *(["bias"] if plain.bias is not None else [])} <= set(layer.state_dict())
    x = torch.randn(2, 6, 11)
    x[:, :, 8:] = 0.0
    silent = torch.zeros(11, dtype=torch.bool)
    silent[8:] = True
    if layer.input is not None:
        layer.input.calibrate(x[:, :, :8])
    for quantizer in (layer.weight_quantizer,):
        if isinstance(quantizer, Quantizer):
            quantizer.calibrate(plain.weight)
    quantized = x if layer.input is None else layer.input(x.mT).mT.masked_fill(silent, 0.0)
    weight = layer.weight_quantizer(plain.weight)
    assert weight.unique().numel() <= (6 if "depthwise" in name else 1) * 2 ** min(8, layer.bits.weight)
    if isinstance(plain, nn.Conv2d):
        output = layer(x[..., None])[..., 0]
        weight = weight[..., 0]
    else:
        output = layer(x)
    stride, padding = plain.stride[0], plain.padding[0]
    torch.testing.assert_close(
        output, nn.functional.conv1d(quantized, weight, plain.bias, stride, padding, groups=plain.groups)
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_attention_products_against_quantized_operands(bits: int) -> None:
    """Outputs and gradients equal softmax attention on fake-quantized operands."""
    torch.manual_seed(3)
    product = QuantMatmul(12, bits).double()
    operands = [torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    visible = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    visible[1, ..., 3:] = False
    for name, x in zip(("query", "key", "value"), operands, strict=True):
        getattr(product, name).calibrate(x)
    product.probability.calibrate(torch.rand(4, 5, dtype=torch.float64) / 5)

    def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = product.query(query) @ product.key(key).mT / 2
        probability = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return product.probability(probability) @ product.value(value)

    results = []
    for function in (lambda q, k, v: product(q, k, v, visible), written_out):
        product.zero_grad()
        output = function(*operands)
        gradients = torch.autograd.grad(output.square().sum(), [*operands, *product.parameters()])
        results.append([output, *gradients])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@torch.no_grad()
def test_attention_products_are_exact(bits: int) -> None:
    """Values that cancel give exactly 0, for every scale and order of addition."""
    product = QuantMatmul(4, bits)
    product.query.calibrated.fill_(True)
    for name, scale in (("query", 0.1), ("key", 0.7), ("value", 0.3), ("probability", 0.003)):
        getattr(product, name).alpha.fill_(scale)
    key = torch.zeros(1, 1, 6, 4)
    value = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 6, 1).expand(1, 1, 6, 4) * 0.3
    output = product(torch.randn(1, 1, 6, 4), key, value, torch.ones(1, 1, 1, 6, dtype=torch.bool))
    assert (output == 0).all()


def test_quantizers_read_no_value_back_from_the_device() -> None:
    """Forward and backward run on the meta device, which has no values."""
    for bits in ("w1a1", "w2a2", "w8a8"):
        layer = QuantLinear(nn.Linear(4, 4), Bits.parse(bits)).to("meta")
        convolution = QuantConv1d(nn.Conv1d(4, 4, 3, groups=4), Bits.parse(bits), True).to("meta")
        product = QuantMatmul(4, layer.bits.activation).to("meta")
        x = torch.empty(2, 5, 4, device="meta", requires_grad=True)
        y = convolution(layer(x).mT).mT[:, None]
        product(y, y, y, torch.ones(1, 1, 1, 3, dtype=torch.bool, device="meta")).sum().backward()
        assert x.grad is not None
