"""Labels belong to the frames that they are computed from: impulses, and existing label files through the command."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.audio.manifest import Manifest
from pretrain.targets.alignment import first_mfcc_frame
from pretrain.targets.features import mfcc_features, strided_mfcc
from runners.cli import main
from upstreams.config import FrontEndConfig
from upstreams.frontend import LogMelFrontEnd, build_front_end, receptive_field_centre

FRAME = 6  # far from the utterance's ends
SAMPLES = 12_800

FRONT_ENDS = {
    "stack, 20 ms": FrontEndConfig(mels=8, subsampling=2),
    "stack, 40 ms": FrontEndConfig(mels=8, subsampling=4),
    "convolution, 20 ms": FrontEndConfig(mels=8, subsampling=2, stem="convolution", width=4),
    "convolution, 40 ms": FrontEndConfig(mels=8, subsampling=4, stem="convolution", width=4),
    "waveform": FrontEndConfig(kind="waveform", normalisation="none", width=8, feature_norm="layer"),
}


@pytest.fixture(params=FRONT_ENDS)
def config(request: pytest.FixtureRequest) -> FrontEndConfig:
    return FRONT_ENDS[request.param]


def front_end_frame(config: FrontEndConfig, waveforms: torch.Tensor) -> torch.Tensor:
    """Return frame FRAME of the front-end, (batch, dim)."""
    torch.manual_seed(0)
    front_end = build_front_end(config, 8).eval()
    if isinstance(front_end, LogMelFrontEnd) and config.stem == "convolution":
        torch.nn.init.constant_(front_end.stem.first.weight, 0.1)  # no ReLU hides an impulse
        torch.nn.init.constant_(front_end.stem.depthwise.weight, 0.1)
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    return front_end(waveforms, lengths)[0][:, FRAME]


def responses(config: FrontEndConfig, places: list[int]) -> list[bool]:
    """Return whether frame FRAME of the front-end responds to an impulse at each of the samples."""
    waveforms = 0.01 * torch.randn(SAMPLES, generator=torch.Generator().manual_seed(1)).repeat(len(places) + 1, 1)
    for row, place in enumerate(places, start=1):
        waveforms[row, place] += 1
    with torch.no_grad():
        frames = front_end_frame(config, waveforms)
    return [bool((frame - frames[0]).abs().max() > 1e-6) for frame in frames[1:]]


def test_the_centre_is_that_of_the_samples_that_a_frame_responds_to(config: FrontEndConfig) -> None:
    centre = int(receptive_field_centre(config)) + FRAME * config.downsample_rate
    places = list(range(centre - 900, centre + 900, 10))
    heard = [place for place, responds in zip(places, responses(config, places), strict=True) if responds]
    assert (heard[0] + heard[-1]) / 2 == pytest.approx(centre, abs=12)


def test_an_mfcc_label_hears_the_impulse_at_the_centre_of_its_frame(config: FrontEndConfig) -> None:
    """An MFCC window reaches 200 samples to either side, so one that is off by a frame misses one of the impulses."""
    hop = config.downsample_rate
    centre = int(receptive_field_centre(config)) + FRAME * hop
    noise = 0.01 * torch.randn(SAMPLES, generator=torch.Generator().manual_seed(1))

    def label_features(waveform: torch.Tensor) -> torch.Tensor:
        return strided_mfcc(hop // 160, first_mfcc_frame(config), 0.0, waveform)[FRAME, :13]  # without differences

    for place in (centre - 115, centre, centre + 115):
        impulse = noise.clone()
        impulse[place] += 1
        assert not torch.allclose(label_features(impulse), label_features(noise), atol=1e-3)


def test_mfcc_frames_of_every_front_end() -> None:
    """Frame 2 i at 20 ms, as in fairseq; at 40 ms the first of the two in the middle of four stacked frames."""
    assert [first_mfcc_frame(config) for config in FRONT_ENDS.values()] == [0, 1, 0, 0, 0]


# Through the command line.


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["superbit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def write_km(path: Path, manifest: Manifest, rate: int, largest: int = 7) -> None:
    """Write labels of `rate` Hz as fairseq has them, one window shorter than the audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (np.arange((n - 400) * rate // 16_000 + 1) % (largest + 1) for n in manifest.samples)
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


SMALL = ("encoder={layers: 2}", "iterations=[{layer: 0, clusters: 8, steps: 1}]", "objective.utterance_layer=1")


def arguments(work: Path, out: Path, *settings: str) -> list[object]:
    where: list[object] = ["pretrain", work / "recipe.yaml", "--manifest", work / "audio/train.tsv", "--out", out]
    return [*where, *(argument for setting in (*SMALL, *settings) for argument in ("--set", setting))]


@pytest.mark.parametrize("rate", [100, 50])
def test_existing_label_files_train_a_40_ms_encoder(
    rate: int, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"labels/mfcc8_{rate}hz/train.km"
    write_km(path, Manifest.read(work / "audio/train.tsv"), rate)
    before = path.read_bytes()
    settings = arguments(work, tmp_path, f"label_rate={rate}")
    assert run(monkeypatch, *settings, "--stage", "iteration1") == 0
    assert path.read_bytes() == before and len(list((tmp_path / "labels").iterdir())) == 1


@pytest.mark.parametrize("valid", [False, True])
def test_ids_beyond_the_clusters_are_refused_before_training(
    valid: bool, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(work / "audio/train.tsv")
    folder = tmp_path / "labels/mfcc8_50hz"
    write_km(folder / "train.km", manifest, 50, largest=7 if valid else 8)
    write_km(folder / "valid.km", manifest, 50, largest=8)
    extra = ["--valid", work / "audio/train.tsv"] if valid else []
    assert run(monkeypatch, *arguments(work, tmp_path, "label_rate=50"), *extra) == 2
    name = "valid.km" if valid else "train.km"
    assert f"{name} has the label 8, but the clusters are 0 to 7" in capsys.readouterr().err
    assert not list(tmp_path.rglob("step_*"))


def test_missing_existing_labels_are_named(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments(work, tmp_path, "label_rate=50")) == 2
    assert "mfcc8_50hz/train.km is missing: label_rate is 50 in the recipe" in capsys.readouterr().err


def test_label_sets_of_two_rates_have_two_folders_and_an_older_set_is_named(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_km(tmp_path / "labels/mfcc8/train.km", Manifest.read(work / "audio/train.tsv"), 25)
    assert run(monkeypatch, *arguments(work, tmp_path, "cluster_starts=1"), "--stage", "labels1") == 0
    printed = capfd.readouterr()
    assert "labels/mfcc8 is not used, as its name has no frame rate" in printed.err + printed.out
    other = arguments(
        work, tmp_path, "cluster_starts=1", "model=hubert_base", "encoder={layers: 1, dim: 128, heads: 2}"
    )
    assert run(monkeypatch, *other, "--stage", "labels1") == 0
    made = {path.name for path in (tmp_path / "labels").iterdir()}
    assert made == {"mfcc8", "mfcc8_25hz_frame1", "mfcc8_50hz_frame0"}


def test_mfcc_of_20_ms_are_every_second_frame(work: Path) -> None:
    manifest = Manifest.read(work / "audio/train.tsv")
    (all_frames,), (half,) = (mfcc_features(manifest, s, 0, 0)([3]) for s in (1, 2))
    np.testing.assert_array_equal(half, all_frames[::2])
    assert len(half) == math.ceil(len(all_frames) / 2)
