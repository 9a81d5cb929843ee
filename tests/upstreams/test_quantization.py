"""BiT's quantizers against their formulas, and models in 1 bit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from upstreams.checkpoint import build
from upstreams.config import preset, preset_names
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.errors import UserError
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrating, quantize
from upstreams.quantization.modules import QuantLinear, QuantProduct
from upstreams.quantization.quantizers import (
    ActivationQuantizer,
    BinarizeSigned,
    BinarizeUnsigned,
    BinarizeWeight,
    sign,
)
from upstreams.quantization.spec import Bits


def test_sign_has_two_levels() -> None:
    assert sign(torch.tensor([-1.0, -0.0, 0.0, 2.0])).tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_weight_is_centred_sign_times_mean_magnitude_and_gradient_passes() -> None:
    weight = torch.tensor([[1.0, 2.0], [-4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    output = BinarizeWeight.apply(weight)
    # mean 1 (so that the weight 1 lies on the threshold and counts as +), mean magnitude 3
    assert output.tolist() == [[3.0, 3.0], [-3.0, 3.0]]
    grad = torch.randn(2, 2, dtype=torch.float64)
    output.backward(grad)
    torch.testing.assert_close(weight.grad, grad)


def test_signed_activation_gradients_at_every_boundary() -> None:
    x = torch.tensor([-2.0, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, 2.0], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    output = BinarizeSigned.apply(x, alpha, 0.25)
    assert output.tolist() == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5, 1.5, 1.5]
    grad = torch.arange(1.0, 9.0, dtype=torch.float64)
    output.backward(grad)
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]  # |x| <= alpha, the boundary included
    assert float(alpha.grad) == pytest.approx(0.25 * (-1 - 2 - 3 + 4 + 5 + 6 + 7 + 8))


def test_unsigned_activation_gradients_at_every_boundary() -> None:
    # x / alpha:   -0.5  0    0.25  0.5  0.75  1    1.25
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    output = BinarizeUnsigned.apply(x, alpha, 0.5)
    assert output.tolist() == [0, 0, 0, 0, 2, 2, 2]  # round half to even: 0.5 -> 0
    grad = torch.ones(7, dtype=torch.float64)
    output.backward(grad)
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert float(alpha.grad) == pytest.approx(0.5 * (0 + 0 - 0.25 - 0.5 + 0.25 + 0 + 1))


def test_gradient_scale_does_not_depend_on_the_batch() -> None:
    """With a loss that is a mean over frames, four copies of a batch give the same gradient of alpha and beta."""
    torch.manual_seed(0)
    quantizer = ActivationQuantizer(8, signed=True, shift=True).double()
    x, target = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    quantizer.calibrate(x)
    grads = []
    for repeat in (1, 4):
        quantizer.zero_grad()
        error = quantizer(x.repeat(repeat, 1, 1)) - target.repeat(repeat, 1, 1)
        error.square().mean().backward()
        assert quantizer.beta is not None
        grads.append((quantizer.alpha.grad.clone(), quantizer.beta.grad.clone()))
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("signed", [True, False])
def test_calibration_sets_alpha_from_mean_magnitude(signed: bool) -> None:
    quantizer = ActivationQuantizer(4, signed=signed, shift=False)
    x = torch.rand(3, 7, 4)
    quantizer.calibrate(x)
    assert float(quantizer.alpha) == pytest.approx((2 if signed else 4) * float(x.abs().mean()))
    assert bool(quantizer.calibrated)


def make(name: str, bits: str) -> AudioEncoder:
    torch.manual_seed(0)
    return build(dataclasses.replace(preset(name), bits=bits)).eval()


@torch.no_grad()
def test_float_weights_load_under_their_own_names() -> None:
    model = make("sparseformer_dn_mini", "w32a32")
    quantized = make("sparseformer_dn_mini", "w1a1")
    missing, unexpected = quantized.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} == {"alpha", "beta", "calibrated"}


@torch.no_grad()
def test_w32a32_is_bit_identical() -> None:
    model = make("transformer_mini", "w32a32")
    waveforms = torch.randn(2, 16_000) * 0.1
    before = model(waveforms)
    quantize(model, "w32a32")
    assert all(torch.equal(a, b) for a, b in zip(before, model(waveforms), strict=True))


@pytest.mark.parametrize("name", [name for name in preset_names() if name.endswith("_mini")])
@torch.no_grad()
def test_w1a1_computes_on_two_levels_everywhere(name: str) -> None:
    model = make(name, "w1a1")
    waveforms = torch.randn(2, 24_000) * 0.1
    with calibrating(model):
        model(waveforms)
    seen: list[tuple[str, Tensor]] = []
    for label, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            assert bool(module.calibrated), label
            module.register_forward_hook(lambda m, i, o, label=label: seen.append((label, o)))
    model(waveforms)
    linears = sum(isinstance(m, QuantLinear) for m in model.modules())
    products = sum(isinstance(m, QuantProduct) for m in model.modules())
    blocks = model.config.encoder.layers
    convolutions = sum(isinstance(m, ConvolutionModule) for m in model.modules())
    feed_forwards = sum(isinstance(m, FeedForward) for m in model.modules())
    assert (linears, products) == (4 * blocks + 2 * feed_forwards + 2 * convolutions, blocks)
    assert len(seen) == linears + 4 * products
    for label, output in seen:
        levels = output.unique()
        assert len(levels) <= 2, (label, levels)
        behind_relu = label.endswith("contract.input") and "convolution" not in label
        non_negative = behind_relu or label.endswith("probability")
        # Of a random model's nearly uniform probabilities none may reach the upper level, and what follows is constant.
        if len(levels) == 2 or non_negative:
            assert (levels >= 0).all() == non_negative, label


@torch.no_grad()
def test_w1a1_features_do_not_depend_on_the_batch() -> None:
    model = make("sparseformer_dn_mini", "w1a1").double()
    waveforms = torch.randn(2, 24_000, dtype=torch.float64) * 0.1
    with calibrating(model):
        model(waveforms)
    lengths = torch.tensor([24_000, 15_000])
    states = model(waveforms, lengths)
    alone = model(waveforms[1:, :15_000])
    frames = alone[0].shape[1]
    for ours, reference in zip(states, alone, strict=True):
        torch.testing.assert_close(ours[1, :frames], reference[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_quantized_linear_against_loops() -> None:
    torch.manual_seed(1)
    layer = QuantLinear(6, 3, Bits(1, 1))
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


@pytest.mark.parametrize("text", ["w3a1", "1a1", "w1", "w1a1x", "", "w1a0"])
def test_bits_outside_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="w1a32"):
        Bits.parse(text)
