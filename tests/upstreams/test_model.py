"""AudioEncoder: features do not depend on the batch; the output map; invalid input is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from upstreams.config import preset, preset_names
from upstreams.formats.checkpoint import build
from upstreams.model import AudioEncoder

# Every encoder and front-end, in sizes that take little time; the others are slow tests.
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
    # The padding is noise here: it must not change the features.
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
    all_layers = torch.cat(layers).double()
    variances = torch.linalg.eigvalsh(all_layers.T @ all_layers / len(all_layers))
    # White, except for directions of little variance, which WHITENING_FLOOR keeps small.
    assert variances.max() < 1.01
    assert variances.median() > 0.8
    # The symmetric whitening matrix (ZCA) changes the dimensions least.
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
def test_invalid_input_is_refused(waveforms: torch.Tensor, lengths: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model("transformer_mini")(waveforms, lengths)
