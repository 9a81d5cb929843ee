"""Statistics of a model: measured in eval mode, so that dropout and batch normalisation do not disturb them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.audio.manifest import Manifest
from pretrain.distill import DistillationSettings, quantize_checkpoint
from pretrain.pretraining import pretrain
from pretrain.recipes import Recipe, read_recipe
from pretrain.training.calibration import calibration_batches
from tests.pretrain.command import weights
from tests.pretrain.tiny_audio import write_corpus
from upstreams.encoders.convolution import BatchNorm
from upstreams.formats import checkpoint
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder
from upstreams.quantization.quantizers import Quantizer

RECIPE = """
model: %s
encoder: {%s, dropout: 0.3, layerdrop: 0.3}
iterations: [{layer: 0, clusters: 4, steps: 1}]
batch_seconds: 6
crop_seconds: 1.0
cluster_fraction: 1.0
cluster_starts: 1
objective: {utterance_layer: 1}
"""
ENCODERS = ["conformer_mini", "squeezeformer_mini", "transformer_mini", "sparseformer_sw_mini"]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("audio"), utterances=8)


def recipe_of(name: str, folder: Path) -> Recipe:
    """Return a recipe of two or four blocks with dropout and layerdrop."""
    blocks = "layers: 4, reduce: 1, recover: 3" if name.startswith("squeeze") else "layers: 2"
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE % (name, blocks))
    return read_recipe(str(path))


@torch.no_grad()
def eigenvalues(model: AudioEncoder, recipe: Recipe, audio: Path) -> torch.Tensor:
    """Return the eigenvalues of the covariance of the features over the audio that the map was measured on."""
    frames = []
    for waveforms, lengths in calibration_batches(Manifest.read(audio), recipe, model.config.downsample_rate, seed=0):
        states = torch.stack(model(waveforms, lengths), dim=2)
        frames.append(states[~padding_mask(model.frame_count(lengths), states.shape[1])])
    x = torch.cat(frames).double().flatten(0, 1)
    return torch.linalg.eigvalsh(x.T @ x / len(x))


@torch.no_grad()
def normalised(model: AudioEncoder, recipe: Recipe, audio: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and variance of each channel after each batch normalisation over the audio of the statistics."""
    values: dict[nn.Module, list[torch.Tensor]] = {}

    def keep(norm: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        values.setdefault(norm, []).append(output[~inputs[1].squeeze(-1)])

    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(keep)
    for waveforms, lengths in calibration_batches(Manifest.read(audio), recipe, model.config.downsample_rate, seed=0):
        model(waveforms, lengths)
    return [(torch.cat(parts).mean(0), torch.cat(parts).var(0)) for parts in values.values()]


@pytest.mark.parametrize("name", ENCODERS)
def test_features_of_the_untrained_copy_are_white_and_calibration_changes_no_statistics(
    name: str, audio: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(name, tmp_path)
    options = {"manifest_path": audio, "out": tmp_path, "labels": tmp_path / "labels", "seed": 0}
    teacher_path = pretrain(recipe, **options)  # type: ignore[arg-type]
    untrained = tmp_path / f"checkpoints/{name}_untrained.safetensors"
    torch.manual_seed(0)
    built, written = dict(AudioEncoder(recipe.config).named_parameters()), weights(untrained)
    assert all(torch.equal(written[f"model.{key}"], value) for key, value in built.items())
    for mean, variance in normalised(checkpoint.load(untrained).eval(), recipe, audio):
        assert float(mean.abs().max()) < 0.1 and 0.5 < float(variance.min()) < float(variance.max()) < 2
    for path in (untrained, teacher_path):
        found = eigenvalues(checkpoint.load(path).eval(), recipe, audio)
        assert float(found.min()) > 0.3 and float(found.max()) < 1.001, f"{path.name}: {found.min()} {found.max()}"

    settings = DistillationSettings(steps=0, batch_seconds=6, crop_seconds=1.0)
    student_path = quantize_checkpoint(
        teacher_path, ["w8a8"], manifest_path=audio, out=tmp_path, seed=0, settings=settings
    )
    teacher, student = weights(teacher_path), weights(student_path)
    assert all(torch.equal(student[key], teacher[key]) for key in teacher if "output_" not in key)
    # A scale that dropout changed would differ from one that is measured in eval mode.
    again = tmp_path / "again"
    torch.manual_seed(99)
    second = quantize_checkpoint(teacher_path, ["w8a8"], manifest_path=audio, out=again, seed=0, settings=settings)
    assert all(torch.equal(student[key], tensor) for key, tensor in weights(second).items())
    assert all(bool(m.calibrated) for m in checkpoint.load(second).modules() if isinstance(m, Quantizer))
