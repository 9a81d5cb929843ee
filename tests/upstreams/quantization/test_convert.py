"""Quantized models: which modules are quantized, which stay float, and what must not change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from upstreams import registry
from upstreams.config import ModelConfig, QuantizationConfig, from_dict, preset, preset_names
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.formats.checkpoint import build
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate, inherit, kinds, quantize, summary
from upstreams.quantization.modules import QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import ActivationQuantizer, Quantizer
from upstreams.quantization.spec import Bits

MINIS = [name for name in preset_names() if name.endswith("_mini")]


def make(name: str, bits: str, **quantization: object) -> AudioEncoder:
    torch.manual_seed(0)
    config = QuantizationConfig(**quantization)  # type: ignore[arg-type]
    return build(dataclasses.replace(preset(name), bits=bits, quantization=config)).eval()


def speech(utterances: int, samples: int, seed: int) -> Tensor:
    """Return harmonics of a varying pitch in noise, (utterances, samples)."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(utterances):
        pitch = np.cumsum(120 + 80 * np.sin(np.arange(samples) / random.uniform(900, 4000))) / 16_000
        rows.append(sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 8)) + random.normal(0, 0.1, samples))
    return 0.1 * torch.tensor(np.array(rows), dtype=torch.float32)


def decibels(signal: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(signal.square().sum() / (signal - other).square().sum()))


@torch.no_grad()
def test_float_weights_load_under_their_own_names() -> None:
    model = make("sparseformer_dn_mini", "w32a32")
    quantized = make("sparseformer_dn_mini", "w1a1")
    missing, unexpected = quantized.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} == {"alpha", "beta", "calibrated"}


@pytest.mark.parametrize("name", MINIS)
@torch.no_grad()
def test_w32a32_is_bit_identical(name: str) -> None:
    model = make(name, "w32a32")
    waveforms = torch.randn(2, 16_000) * 0.1
    before = model(waveforms)
    assert quantize(model, "w32a32", QuantizationConfig({"feed_forward": "w32a32"})) == []
    assert all(torch.equal(a, b) for a, b in zip(before, model(waveforms), strict=True))


@pytest.mark.parametrize("name", MINIS)
@torch.no_grad()
def test_w8a8_by_calibration_alone_keeps_20_decibels(name: str) -> None:
    """Calibrate and measure on different utterances; front-end and depthwise convolutions have 8 bits as well."""
    model = make(name, "w32a32")
    measured = speech(2, 32_000, seed=1)
    reference = model(measured)
    overrides = {"front_end": "w8a8"} | ({"depthwise": "w8a8"} if "former_mini" in name and name[0] in "cq" else {})
    quantize(model, "w8a8", QuantizationConfig(overrides))
    calibrate(model, speech(4, 48_000, seed=2), torch.full((4,), 48_000))
    assert all(bool(m.calibrated) for m in model.modules() if isinstance(m, Quantizer))
    assert 20 < decibels(reference[-1], model(measured)[-1]) < 100


@pytest.mark.parametrize("name", MINIS)
@torch.no_grad()
def test_w1a1_computes_on_two_levels_everywhere(name: str) -> None:
    model = make(name, "w1a1")
    waveforms = torch.randn(2, 24_000) * 0.1
    calibrate(model, waveforms, torch.tensor([24_000, 24_000]))
    seen: list[tuple[str, Tensor]] = []
    for label, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            assert bool(module.calibrated), label
            module.register_forward_hook(lambda m, i, o, label=label: seen.append((label, o)))
    model(waveforms)
    linears = sum(isinstance(m, QuantLinear) for m in model.modules())
    products = sum(isinstance(m, QuantMatmul) for m in model.modules())
    blocks = model.config.encoder.layers
    convolutions = sum(isinstance(m, ConvolutionModule) for m in model.modules())
    feed_forwards = sum(isinstance(m, FeedForward) for m in model.modules())
    assert (linears, products) == (4 * blocks + 2 * feed_forwards + 2 * convolutions, blocks)
    assert len(seen) == linears + 4 * products
    for label, output in seen:
        levels = output.unique()
        assert len(levels) <= 2, (label, levels)
        after_relu = label.endswith("contract.input") and "convolution" not in label
        non_negative = after_relu or label.endswith("probability")
        # The probabilities of a random model are nearly uniform: all may be at the lower level, and what follows is
        # then constant.
        if len(levels) == 2 or non_negative:
            assert (levels >= 0).all() == non_negative, label


@pytest.mark.parametrize(
    ("name", "bits", "overrides"),
    [
        ("sparseformer_dn_mini", "w1a1", {}),
        ("sparseformer_dn_mini", "w1a1", {"front_end": "w1a1", "positions": "w1a1"}),
        ("conformer_mini", "w1a1", {"depthwise": "w1a1"}),
        ("squeezeformer_mini", "w2a2", {"depthwise": "w1a1", "resampling": "w4a4"}),
        ("transformer_mini", "w4a4", {"encoder.blocks.1.*": "w8a8"}),
    ],
)
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(name: str, bits: str, overrides: dict[str, str]) -> None:
    model = make(name, bits, overrides=overrides).double()
    waveforms = torch.randn(2, 24_000, dtype=torch.float64) * 0.1
    calibrate(model, waveforms, torch.tensor([24_000, 24_000]))
    lengths = torch.tensor([24_000, 15_000])
    states = model(waveforms, lengths)
    alone = model(waveforms[1:, :15_000])
    frames = alone[0].shape[1]
    for ours, reference in zip(states, alone, strict=True):
        torch.testing.assert_close(ours[1, :frames], reference[0], atol=1e-4, rtol=0)


def test_overrides_reach_their_modules_and_the_last_wins() -> None:
    overrides = {"depthwise": "w8a8", "encoder.blocks.0.*": "w4a32", "encoder.blocks.0.attention.product": "w2a2"}
    model = make("conformer_mini", "w1a1", overrides=overrides | {"front_end": "w2a8"})
    found = {name: module.bits for name, module in model.named_modules() if hasattr(module, "weight_quantizer")}
    assert found["front_end.projection"] == Bits(2, 8)
    assert found["encoder.blocks.1.convolution.depthwise.convolution"] == Bits(8, 8)
    assert found["encoder.blocks.0.convolution.depthwise.convolution"] == Bits(4, 32)
    assert found["encoder.blocks.0.first.expand"] == Bits(4, 32)
    assert found["encoder.blocks.1.first.expand"] == Bits(1, 1)
    assert "encoder.positions.convolution" not in found
    assert model.get_submodule("encoder.blocks.0.attention.product").bits == Bits(2, 2)
    assert model.get_submodule("encoder.blocks.1.attention.product").bits == Bits(1, 1)
    depthwise = model.get_submodule("encoder.blocks.1.convolution.depthwise.convolution")
    assert depthwise.weight_quantizer.alpha.shape == (96, 1, 1, 1)  # one scale a filter


def test_every_linear_and_convolution_has_a_kind_and_can_be_quantized() -> None:
    for name in ("squeezeformer_xs", "conformer_s", "distilhubert"):
        model = AudioEncoder(preset(name))
        computing = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}
        assert computing <= set(kinds(model))
        before = model.state_dict()
        sites = quantize(model, "w4a4", QuantizationConfig({"*": "w8a8"}))
        assert {site.name for site in sites} == set(kinds(model))
        assert not any(type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d) for m in model.modules())
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_inputs_after_swish_and_glu_by_configuration() -> None:
    """Either a ReLU and levels from 0 up, or the original activation and signed levels."""

    def blocks(bits: str, **choices: object) -> tuple[FeedForward, ConvolutionModule]:
        block = make("conformer_mini", bits, overrides={"depthwise": bits}, **choices).encoder.blocks[0]
        return block.first, block.convolution

    feed_forward, convolution = blocks("w1a1")
    assert isinstance(feed_forward.activation, nn.ReLU) and not feed_forward.contract.input.signed
    assert isinstance(convolution.activation, nn.SiLU) and convolution.contract.input.signed
    assert isinstance(convolution.gate, nn.GLU) and convolution.depthwise.convolution.input.signed
    feed_forward, convolution = blocks("w8a8")
    assert isinstance(feed_forward.activation, nn.SiLU) and feed_forward.contract.input.signed
    feed_forward, convolution = blocks("w1a1", feed_forward_input="signed", convolution_input="relu")
    assert isinstance(feed_forward.activation, nn.SiLU) and feed_forward.contract.input.signed
    assert isinstance(convolution.activation, nn.ReLU) and not convolution.contract.input.signed
    assert not convolution.depthwise.convolution.input.signed
    gated = convolution.gate(torch.randn(7, 192))
    assert gated.shape == (7, 96) and (gated >= 0).all()


@torch.no_grad()
def test_inputs_after_the_relus_of_the_stem_are_non_negative() -> None:
    """The inputs after the stem's two ReLUs, and no others, are non-negative."""
    model = AudioEncoder(preset("squeezeformer_xs"))
    sites = {s.name: s for s in quantize(model, "w32a32", QuantizationConfig({"front_end": "w4a4"}))}
    non_negative = {name for name, site in sites.items() if site.non_negative}
    assert non_negative == {"front_end.stem.depthwise", "front_end.projection"}
    inputs: dict[str, Tensor] = {}
    for name in sites:
        model.get_submodule(name).register_forward_pre_hook(lambda m, i, n=name: inputs.__setitem__(n, i[0]))
    model.embed(torch.randn(1, 8000) * 0.1)
    assert {name for name, x in inputs.items() if (x >= 0).all()} == non_negative


def test_padding_touches_no_scale() -> None:
    """Two full-length utterances give the same scales, bit for bit, with a shorter utterance and more padding."""
    waveforms, lengths = speech(3, 16_000, seed=3), torch.tensor([16_000, 9_000, 16_000])
    waveforms[1, 9_000:] = 0.7  # in the padding
    scales = []
    for batch, count in ((waveforms, lengths), (waveforms[[0, 2]], lengths[[0, 2]])):
        model = make("sparseformer_dn_mini", "w2a8")
        calibrate(model, nn.functional.pad(batch, (0, 500)), count)
        scales.append([q.alpha for q in model.modules() if isinstance(q, Quantizer)])
    assert len(scales[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*scales, strict=True))


def test_a_students_quantizers_inherit_only_what_is_alike() -> None:
    waveforms, lengths = speech(1, 16_000, seed=4), torch.tensor([16_000])
    teacher = make("sparseformer_dn_mini", "w1a2")
    calibrate(teacher, waveforms, lengths)
    student = make("sparseformer_dn_mini", "w1a1", overrides={"encoder.blocks.0.*": "w1a2"})
    inherit(student, teacher)
    inputs = [block.attention.query.input for block in student.encoder.blocks]
    assert [bool(quantizer.calibrated) for quantizer in inputs] == [True] + [False] * 7
    assert torch.equal(inputs[0].alpha, teacher.encoder.blocks[0].attention.query.input.alpha)
    assert torch.equal(student.front_end.projection.weight, teacher.front_end.projection.weight)
    with pytest.raises(UserError, match="different architectures"):
        inherit(make("transformer_mini", "w1a1"), teacher)


@torch.no_grad()
def test_a_checkpoint_rebuilds_overrides_and_one_without_them_still_loads(tmp_path: Path) -> None:
    model = make(
        "conformer_mini", "w2a2", overrides={"depthwise": "w1a1"}, convolution_input="relu", weight_scale="channel"
    )
    waveforms = speech(1, 8_000, seed=5)
    calibrate(model, waveforms, torch.tensor([8_000]))
    checkpoint.save(tmp_path / "a.safetensors", model, None, {})
    again = checkpoint.load(tmp_path / "a.safetensors")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model(waveforms), again(waveforms), strict=True))
    old = dataclasses.asdict(preset("conformer_mini"))
    del old["quantization"]
    assert from_dict(ModelConfig, old, "old") == preset("conformer_mini")


@pytest.mark.parametrize("text", ["w3a1", "1a1", "w1", "w1a1x", "", "w1a0", "w16a16", "W1A1"])
def test_bits_outside_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="1, 2, 4, 8 or 32 bits"):
        Bits.parse(text)


def test_every_width_is_in_the_grammar_and_a_name() -> None:
    names = registry.names()
    for weight in (1, 2, 4, 8, 32):
        for activation in (1, 2, 4, 8, 32):
            text = f"w{weight}a{activation}"
            assert str(Bits.parse(text)) == text
            assert (f"conformer_mini_{text}" in names) == (text != "w32a32")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depthwis": "w8a8"}, "'depthwis' matches no module of conformer_mini: did you mean 'depthwise'"),
        ({"encoder.block.0.*": "w8a8"}, r"did you mean 'encoder\.blocks\.0"),
        ({"zzz": "w8a8"}, "matches no module of conformer_mini: the closest is '[a-z_0-9.]+'$"),
        ({"front_end": "w9a8"}, "'w9a8' are not valid"),
    ],
)
def test_bad_overrides_name_what_is_wrong(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("conformer_mini", "w1a1", overrides=overrides)
    # A Sparseformer has no depthwise convolution to quantize.
    with pytest.raises(UserError, match="matches no module"):
        make("sparseformer_dn_mini", "w1a1", overrides={"depthwise": "w8a8"})


def test_bad_configuration_is_refused() -> None:
    with pytest.raises(UserError, match=r"weight_scale 'chanel' .*did you mean 'channel'"):
        make("conformer_mini", "w1a1", weight_scale="chanel")
    with pytest.raises(UserError, match="mapping"):
        from_dict(ModelConfig, {"name": "m", "quantization": {"overrides": {"front_end": 8}}}, "x")
    with pytest.raises(UserError, match="quantized already"):
        quantize(make("conformer_mini", "w1a1"), "w1a1")


def test_summary_counts_quantized_modules() -> None:
    model = make("sparseformer_dn_mini", "w32a32")
    assert summary(quantize(model, "w1a1")) == [
        "attention: 40 modules w1a1, input signed",
        "feed_forward: 8 modules w1a1, input signed",
        "feed_forward: 8 modules w1a1, input from 0 up (after a ReLU)",
    ]
