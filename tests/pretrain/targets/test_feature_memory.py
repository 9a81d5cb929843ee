"""Features for labels: batches by seconds of audio, and memory that is checked before the first iteration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.audio.manifest import Manifest
from pretrain.pretraining import pretrain
from pretrain.recipes import read_recipe
from pretrain.targets import feature_memory
from pretrain.targets.feature_memory import check_features, feature_bytes
from pretrain.targets.features import by_seconds, layer_features
from tests.pretrain.tiny_audio import write_corpus, write_recipe
from upstreams.config import SAMPLE_RATE, preset
from upstreams.errors import UserError
from upstreams.model import AudioEncoder


def test_batches_of_features_hold_seconds_of_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(write_corpus(tmp_path, utterances=9))
    model = AudioEncoder(preset("sparseformer_dn_mini")).eval()
    shapes: list[torch.Size] = []
    embed = AudioEncoder.embed

    def recorded(self: AudioEncoder, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append(waveforms.shape)
        return embed(self, waveforms, lengths)

    monkeypatch.setattr(AudioEncoder, "embed", recorded)
    together = list(layer_features(manifest, model, 1, 0, seconds=4.0)(range(9)))
    assert len(shapes) > 2 and all(rows * samples <= 4 * SAMPLE_RATE for rows, samples in shapes)
    alone = list(layer_features(manifest, model, 1, 0, seconds=0.1)(range(9)))
    for ours, reference in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_a_long_utterance_is_computed_alone() -> None:
    samples = [16_000, 16_000, 800_000, 16_000]
    assert list(by_seconds([0, 1, 2, 3], samples, 3.0)) == [[0, 1], [2], [3]]
    assert list(by_seconds([], samples, 3.0)) == []


def test_memory_grows_with_the_seconds_and_holds_at_least_the_states() -> None:
    config = preset("sparseformer_dn_mini")
    short, long = feature_bytes(config, 2.0), feature_bytes(config, 20.0)
    states = 9 * 20 * 25 * 128 * 4
    assert states < long < 100 * states and long - short > 18 * 25 * 9 * 128 * 4


def test_too_little_memory_for_features_is_refused_before_iteration_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_corpus(tmp_path / "audio", utterances=3)
    lines = path.read_text().split("\n")
    lines[2] = "1.wav\t320000000"  # 20 000 s
    path.write_text("\n".join(lines))
    recipe = read_recipe(str(write_recipe(tmp_path / "recipe.yaml")))
    monkeypatch.setattr(feature_memory, "free_bytes", lambda device: 1e9)
    with pytest.raises(UserError, match=r"1\.wav is 20000 s long, and sparseformer_dn_mini needs about .* GB"):
        pretrain(recipe, manifest_path=path, out=tmp_path / "run", labels=tmp_path / "labels", seed=0)
    assert not (tmp_path / "labels").exists() and not (tmp_path / "run/pretrain").exists()
    short = Manifest(path.parent, ("0.wav",), (32_000,))
    check_features(recipe.config, short, 60.0, torch.device("cpu"))
    with pytest.raises(UserError, match="features of 600000 s of audio at once"):
        check_features(recipe.config, short, 600_000.0, torch.device("cpu"))
