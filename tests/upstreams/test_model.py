"""Encoders: features of an utterance are its own, windows are what they say, bad input is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from upstreams.config import preset, preset_names
from upstreams.encoders.attention import ScaledDotProduct
from upstreams.encoders.sparseformer import local_attention
from upstreams.errors import UserError
from upstreams.formats.checkpoint import build
from upstreams.frontend import LogMel, mel_filters
from upstreams.model import AudioEncoder

# Every encoder and front-end, at sizes that a test can afford.
AFFORDABLE = [name for name in preset_names() if name.endswith(("_mini", "_xs")) or name == "distilhubert"]
EVERY = [pytest.param(name, marks=() if name in AFFORDABLE else pytest.mark.slow) for name in preset_names()]
AWKWARD = [1, 399, 400, 401, 1599, 1600, 10_000, 10_241, 32_000, 70_001]


def random_model(name: str, bits: str = "w32a32") -> AudioEncoder:
    torch.manual_seed(0)
    model = build(dataclasses.replace(preset(name), bits=bits))
    with torch.no_grad():
        if model.config.output_map:
            model.output_mean.normal_()
            model.output_std.uniform_(0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(name: str) -> None:
    model = random_model(name)
    # What lies beyond an utterance's length is not silence here: it must not matter.
    waveforms = torch.randn(len(AWKWARD), max(AWKWARD)) * 0.1
    lengths = torch.tensor(AWKWARD)
    batch = model(waveforms, lengths)
    assert len(batch) == model.config.encoder.layers + 1
    for row, length in enumerate(AWKWARD):
        alone = model(waveforms[row : row + 1, :length])
        frames = int(model.frame_count(torch.tensor(length)))
        assert alone[0].shape == (1, frames, model.config.encoder.dim)
        assert abs(frames - round(length / model.config.downsample_rate)) < 5  # s3prl's tolerance
        for ours, reference in zip(batch, alone, strict=True):
            torch.testing.assert_close(ours[row, :frames], reference[0], atol=1e-4, rtol=0)
            assert not ours[row, frames:].any()


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_silence_and_a_minute_are_finite(name: str) -> None:
    model = random_model(name)
    for waveform in (torch.zeros(1, 8000), torch.randn(1, 960_000)):
        assert all(torch.isfinite(state).all() for state in model(waveform))


@pytest.mark.parametrize(("frames", "radius"), [(1, 16), (7, 16), (16, 16), (17, 16), (50, 3), (33, 1), (64, 8)])
def test_local_attention_equals_masked_full_attention(frames: int, radius: int) -> None:
    torch.manual_seed(frames)
    query, key, value = torch.randn(3, 2, frames, 4, 8, dtype=torch.float64)
    lengths = torch.tensor([frames, max(1, frames - 5)])
    output = local_attention(ScaledDotProduct(), query, key, value, lengths, radius)
    distance = (torch.arange(frames) - torch.arange(frames)[:, None]).abs()
    for row, length in enumerate(lengths.tolist()):
        visible = (distance <= radius) & (torch.arange(frames) < length)
        scores = torch.einsum("qhd,khd->hqk", query[row], key[row]) / 8**0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        oracle = torch.einsum("hqk,khd->qhd", weights, value[row])
        torch.testing.assert_close(output[row, :length], oracle[:length])


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


@torch.no_grad()
def test_fit_output_standardises_and_decorrelates_valid_frames_only() -> None:
    model = random_model("sparseformer_dn_mini")
    lengths = torch.tensor([480_000, 200_000, 90_000])
    waveforms = torch.randn(3, 480_000) * 0.1
    model.fit_output([(waveforms, lengths)])
    frames = model.frame_count(lengths)
    layers = [
        torch.cat([state[row, :count] for row, count in enumerate(frames.tolist())])
        for state in model(waveforms, lengths)
    ]
    for valid in layers:
        torch.testing.assert_close(valid.mean(0), torch.zeros(valid.shape[1]), atol=1e-2, rtol=0)
    together = torch.cat(layers).double()
    variances = torch.linalg.eigvalsh(together.T @ together / len(together))
    # White but for the floor, under which directions without variance stay small.
    assert variances.max() < 1.01
    assert variances.median() > 0.8
    # In a whitening by a symmetric matrix every dimension stays closest to itself.
    torch.testing.assert_close(model.output_rotation, model.output_rotation.T)


@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (
            torch.zeros(2, 3, 100),
            None,
            r"waveforms have shape \(2, 3, 100\), but must be \(batch, samples\) or \(samples,\)",
        ),
        (torch.zeros(1, 100, dtype=torch.int16), None, "floating point"),
        (torch.zeros(0, 100), None, "the batch has no utterance"),
        (torch.zeros(1, 0), None, "utterance 0 of the batch has length 0"),
        (torch.zeros(2, 100), torch.tensor([100]), r"lengths have shape \(1,\), but must have one per utterance: 2"),
        (torch.zeros(2, 100), torch.tensor([100, 0]), "utterance 1 of the batch has length 0"),
        (
            torch.zeros(2, 100),
            torch.tensor([101, 5]),
            "utterance 0 of the batch has length 101, longer than the batch's 100",
        ),
        (torch.tensor([[0.0] * 9, [float("nan")] * 9]), None, "utterance 1 of the batch"),
    ],
)
def test_bad_input_is_told(waveforms: torch.Tensor, lengths: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model("transformer_mini")(waveforms, lengths)


def test_a_sparseformer_has_no_convolution_module() -> None:
    model = random_model("sparseformer_dn_mini")
    assert not any(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in model.encoder.blocks.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads 5 in sparseformer_dn_mini does not divide dim 128"),
        ({"radius": 0}, "radius is 0"),
        ({"kind": "sparsformer"}, "did you mean 'sparseformer'"),
        ({"activation": "silu"}, "encoder.activation 'silu' .* is unknown"),
        ({"position_groups": 3}, "position_groups 3 in sparseformer_dn_mini does not divide dim 128"),
        ({"kind": "squeezeformer"}, "reduce 0 and encoder.recover 0 .* reduce before recover"),
        ({"kind": "conformer", "kernel": 30}, "kernel 30 .* must be odd"),
        ({"positions": "rotary", "heads": 128}, "rotary .* needs heads of an even width, not 1"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    config = preset("sparseformer_dn_mini")
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **change))
