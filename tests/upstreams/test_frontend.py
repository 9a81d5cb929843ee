"""Front-ends: log-mel features, and every front-end with every encoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.upstreams.encoders.small import FRONT_ENDS, KINDS, small_model
from upstreams.config import QuantizationConfig
from upstreams.formats.checkpoint import build
from upstreams.frontend import LogMel, mel_filters
from upstreams.packed import convert
from upstreams.quantization.convert import calibrate


def test_mel_filters_equal_torchaudios() -> None:
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)

    torchaudio = pytest.importorskip("torchaudio")
    reference, _ = torchaudio.compliance.kaldi.get_mel_banks(80, 512, 16_000.0, 20.0, 8000.0, 100.0, -500.0, 1.0)
    torch.testing.assert_close(mel_filters(80)[:256], reference.T, atol=1e-4, rtol=0)


@torch.no_grad()
def test_log_mel_of_a_tone_peaks_at_its_frequency() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)[None]
    peak = LogMel(80).raw(tone)[0].mean(0).argmax()
    centre = 700 * (torch.exp((peak + 1) * (1127 * torch.log1p(torch.tensor(8000 / 700)) - 31.75) / 81 / 1127) - 1)
    assert abs(float(centre) - 1000) < 60


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(kind: str, front_end: str) -> None:
    model = small_model(kind, front_end).eval()
    lengths = torch.tensor([1, 399, 400, 719, 720, 1601, 8000, 8001])
    waveforms = torch.randn(8, 8001) * 0.1
    batch = model(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        frames = int(model.frame_count(torch.tensor(length)))
        alone = model(waveforms[row, :length])
        assert alone[0].shape == (1, frames, 16)
        assert abs(frames - round(length / model.config.downsample_rate)) < 5  # s3prl's tolerance
        for ours, reference in zip(batch, alone, strict=True):
            torch.testing.assert_close(ours[row, :frames], reference[0], atol=1e-4, rtol=0)
    silence, sample, minute = torch.zeros(1, 800), torch.zeros(1, 1), torch.randn(1, 60 * 16_000) * 0.1
    for waveform in (silence, sample, minute):
        assert all(torch.isfinite(state).all() for state in model(waveform))


@pytest.mark.parametrize("front_end", ["convolution at 40 ms", "normalised waveform", "waveform"])
@pytest.mark.parametrize("positions", ["conv", "relative", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str, positions: str, front_end: str) -> None:
    """With autocast and with bfloat16 weights, features equal those of float32 up to rounding; gradients are finite."""
    torch.manual_seed(0)
    model = small_model(kind, front_end, positions=positions).eval()
    waveforms, lengths = torch.randn(2, 16_000) * 0.1, torch.tensor([16_000, 9_000])
    with torch.no_grad():
        wanted = model(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(waveforms, lengths)
        loss = model.train()(waveforms, lengths)[-1].float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        in_half = model.eval().bfloat16()(waveforms, lengths)
    assert in_half[-1].dtype == torch.bfloat16
    for states in (under_autocast, in_half):
        for state, reference in zip(states, wanted, strict=True):
            error = (state.float() - reference).square().mean() / reference.square().mean()
            assert error < 0.03**2
            assert not state[1, model.frame_count(lengths)[1] :].any()


@pytest.mark.parametrize("front_end", ["stack at 40 ms", "convolution at 40 ms", "waveform"])
@pytest.mark.parametrize("kind", KINDS)
def test_exports(kind: str, front_end: str) -> None:
    model = small_model(kind, front_end).eval()
    example = (torch.randn(2, 16_000), torch.tensor([16_000, 9_000]))
    exported = torch.export.export(model, example)
    with torch.no_grad():
        for ours, wanted in zip(exported.module()(*example), model(*example), strict=True):
            torch.testing.assert_close(ours, wanted)


@torch.no_grad()
def test_a_packed_waveform_front_end_equals_the_quantized_one() -> None:
    config = small_model("transformer", "waveform").config
    model = build(
        dataclasses.replace(config, bits="w8a8", quantization=QuantizationConfig({"front_end": "w4a8"}))
    ).eval()
    waveforms, lengths = torch.randn(2, 8_000) * 0.1, torch.tensor([8_000, 5_000])
    calibrate(model, waveforms, lengths)
    wanted = model(waveforms, lengths)
    for state, reference in zip(convert.pack(model)(waveforms, lengths), wanted, strict=True):
        torch.testing.assert_close(state, reference, atol=1e-3, rtol=0)
