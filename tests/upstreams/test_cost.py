"""Costs against published figures and against what torch counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from upstreams import cost
from upstreams.config import preset, preset_names
from upstreams.encoders import build_encoder
from upstreams.formats import checkpoint
from upstreams.formats.checkpoint import build
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrating


@pytest.mark.parametrize(
    ("name", "millions", "gflops"), [("squeezeformer_xs", 9.0, 18.2), ("squeezeformer_s", 18.6, 33.7)]
)
def test_squeezeformers_published_size(name: str, millions: float, gflops: float) -> None:
    model = AudioEncoder(preset(name))
    assert cost.parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
    assert 2 * cost.macs(model, 30 * 16_000) / 1e9 == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize(("name", "gmacs", "millions"), [("hubert_base", 1669, 94.7), ("distilhubert", 785, 23.49)])
def test_huberts_published_cost(name: str, gmacs: float, millions: float) -> None:
    with torch.device("meta"):
        model = AudioEncoder(preset(name))
    assert sum(c.macs for c in cost.profile(model, cost.SUPERB_SAMPLES)) / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert cost.parameters(model) / 1e6 == pytest.approx(millions, rel=0.005)


def test_sparseformers_are_within_three_percent_of_conformer_s() -> None:
    sizes = {
        name: cost.parameters(build_encoder(preset(name).encoder))
        for name in ("conformer_s", "sparseformer_dn_s", "sparseformer_sw_s")
    }
    for one in sizes.values():
        for other in sizes.values():
            assert one == pytest.approx(other, rel=0.03)
    for name in ("conformer_mini", "squeezeformer_mini", "sparseformer_dn_mini", "sparseformer_sw_mini"):
        assert 1e6 < cost.parameters(AudioEncoder(preset(name))) < 2e6


@pytest.mark.parametrize("name", [n for n in preset_names() if n.endswith(("_mini", "_s")) or n == "distilhubert"])
def test_macs_equal_what_torch_counts(name: str) -> None:
    """Compare with torch's FlopCounterMode (2 operations per MAC) on a whole number of blocks of local attention."""
    model = checkpoint.build(preset(name)).eval()
    samples = 64 * 640  # 64 frames
    counter = FlopCounterMode(display=False)
    # torch has no formula for its flash attention on a CPU, so the two products run separately.
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.randn(1, samples))
    assert cost.macs(model, samples) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


@pytest.mark.parametrize("bits", ["w1a32", "w1a1"])
@pytest.mark.parametrize("name", ["conformer_mini", "squeezeformer_mini"])
@torch.no_grad()
def test_quantization_keeps_macs_and_reduces_bit_operations(name: str, bits: str) -> None:
    model = build(dataclasses.replace(preset(name), bits=bits)).eval()
    waveform = torch.randn(1, 16_000) * 0.1
    with calibrating(model):
        model(waveform)
    assert all(torch.isfinite(state).all() for state in model(waveform))
    float_bits, bits_now = cost.profile(AudioEncoder(preset(name)), [16_000]), cost.profile(model, [16_000])
    assert sum(c.macs for c in bits_now) == sum(c.macs for c in float_bits)
    assert sum(c.bops for c in bits_now) < 0.5 * sum(c.bops for c in float_bits)
