"""Files that are damaged or lie: every reader answers with a UserError, never with a traceback."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretrain.audio.manifest import Manifest
from pretrain.distill import read_distillation_settings
from pretrain.objectives.distillation import load_with_head
from pretrain.objectives.hubert import CodewordHead
from pretrain.recipes import read_recipe
from pretrain.targets.label_files import read_labels
from pretrain.targets.labels import _check_timing, read_centroids
from pretrain.training import state
from pretrain.training.provenance import read_run_config, write_run_config
from runners.downstream.past import read_checkpoint
from runners.matrix.file import read_matrix
from tests.mutations import check_mutations
from tests.pretrain.tiny_audio import write_corpus, write_recipe
from tests.upstreams.formats.public_models import POST, s3prl_file, transformers_model
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.files import read_record, write_json
from upstreams.formats import checkpoint
from upstreams.formats.public_hubert import load_public

TINY = ModelConfig(
    "tiny", FrontEndConfig(mels=8), EncoderConfig(layers=1, dim=16, heads=2, feed_forward_dim=16, position_groups=16)
)
SMALL = dataclasses.replace(
    POST,
    front_end=dataclasses.replace(POST.front_end, width=4),
    encoder=EncoderConfig("transformer", 1, 8, 2, 8, "gelu", "post", "conv", position_kernel=4, position_groups=4),
)


def a_checkpoint(folder: Path) -> Path:
    """Write a checkpoint without a digest, as the first ones: damage reaches the readers behind the digest."""
    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    checkpoint.save(path, checkpoint.build(dataclasses.replace(TINY, bits="w1a8")), CodewordHead(16, 5, 4), {"seed": 1})
    config, tensors, provenance = checkpoint.read(path)
    about = {"format": 1, "config": dataclasses.asdict(config), "provenance": provenance}
    save_file(tensors, path, metadata={"superbit": json.dumps(about)})
    return path


def a_transformers_folder(folder: Path) -> Path:
    transformers_model(SMALL).save_pretrained(folder)
    return folder / "config.json"


def a_public_file(folder: Path) -> Path:
    s3prl_file(folder / "hubert.pt", SMALL)
    return folder / "hubert.pt"


def a_legacy_file(folder: Path) -> Path:
    content = torch.load(a_public_file(folder), weights_only=True)
    torch.save(content, folder / "hubert.pt", _use_new_zipfile_serialization=False)
    return folder / "hubert.pt"


def a_public_safetensors_file(folder: Path) -> Path:
    save_file(transformers_model(SMALL).state_dict(), folder / "hubert.safetensors")
    return folder / "hubert.safetensors"


def a_training_state(folder: Path) -> Path:
    model = checkpoint.build(TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    torch.save({**content, "step": 7, "loss": 0.5}, folder / "state.pt")
    return folder / "state.pt"


def an_s3prl_checkpoint(folder: Path) -> Path:
    args = argparse.Namespace(upstream="fbank", upstream_layer_selection=None, device="cpu", seed=1)
    content = {"Args": args, "Config": {"runner": {"total_steps": 4}}, "Step": 2, "Featurizer": {}}
    torch.save({**content, "Downstream": torch.nn.Linear(4, 4).state_dict()}, folder / "states-2.ckpt")
    return folder / "states-2.ckpt"


def a_summary_of_labels(folder: Path) -> Path:
    summary = {"frame_ms": 40, "first_mfcc_frame": 1, "label_rate": 25.0, "clusters": 8}
    write_json(folder / "summary.json", summary)
    return folder / "summary.json"


def timing_of(path: Path) -> None:
    _check_timing(path, read_record(path, "make the labels again"), {"frame_ms": 40, "first_mfcc_frame": 1})


def a_run_config(folder: Path) -> Path:
    write_run_config(folder, {"recipe": {"name": "tiny"}, "seed": 1, "micro_batches": 4})
    return folder / "config.json"


def centroids(folder: Path) -> Path:
    save_file({"centroids": torch.randn(8, 39)}, folder / "kmeans.safetensors")
    return folder / "kmeans.safetensors"


def a_manifest(folder: Path) -> Path:
    return write_corpus(folder / "corpus", utterances=6, seconds=0.1)


def a_label_file(folder: Path) -> Path:
    samples = Manifest.read(a_manifest(folder)).samples
    lines = [" ".join(str(k % 9) for k in range(-(-n // 640))) for n in samples]
    (folder / "train.km").write_text("\n".join(lines) + "\n")
    return folder / "train.km"


def a_recipe(folder: Path) -> Path:
    path = write_recipe(folder / "recipe.yaml")
    more = (
        "objective: {head: linear, layers: [2], mask_prob: 0.5}\n"
        "quantization: {bits: w1a1, config: {overrides: {positions: w8a8}}}\n"
    )
    path.write_text(path.read_text() + "encoder: {layers: 6}\nteacher: {layers: [1, 2]}\n" + more)
    return path


def a_distillation_recipe(folder: Path) -> Path:
    (folder / "quantize.yaml").write_text("steps: 5\nquantization: {overrides: {front_end: w8a8}}\nlr: 1.0e-3\n")
    return folder / "quantize.yaml"


def a_matrix(folder: Path) -> Path:
    text = (
        "upstreams:\n  - fbank\n  - {label: mine, name: transformer_mini}\n"
        "tasks:\n  ks: {runner.total_steps: 300, optimizer.lr: 1.0e-2}\n  sid: {}\n"
        "learning_rates:\n  sid: [1.0e-1, 1.0e-2]\nseeds: [1, 2]\ndevice: cpu\nfeature_store_gb: 32\n"
        "feature_store_dtype: fp16\nslurm: {timeout_min: 600}\n"
    )
    (folder / "matrix.yaml").write_text(text)
    return folder / "matrix.yaml"


def labels_of(path: Path) -> list[np.ndarray]:
    return read_labels(path, Manifest.read(path.parent / "corpus/train.tsv"), FrontEndConfig())


FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "checkpoint": (a_checkpoint, load_with_head),
    "checkpoint's configuration": (a_checkpoint, checkpoint.read_config),
    "public .pt": (a_public_file, lambda path: load_public(path, SMALL)),
    "public .pt before torch 1.6": (a_legacy_file, lambda path: load_public(path, SMALL)),
    "public .safetensors": (a_public_safetensors_file, lambda path: load_public(path, SMALL)),
    "config.json": (a_transformers_folder, lambda path: load_public(path.parent, SMALL)),
    "training state": (a_training_state, state.load),
    "s3prl's checkpoint": (an_s3prl_checkpoint, lambda path: read_checkpoint(path, "-e")),
    "summary of labels": (a_summary_of_labels, timing_of),
    "run's configuration": (a_run_config, lambda path: read_run_config(path.parent)),
    "centroids": (centroids, read_centroids),
    "manifest": (a_manifest, Manifest.read),
    "labels": (a_label_file, labels_of),
    "recipe": (a_recipe, lambda path: read_recipe(str(path))),
    "distillation recipe": (a_distillation_recipe, read_distillation_settings),
    "matrix": (a_matrix, read_matrix),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    write, read = FORMATS[name]
    check_mutations(write(tmp_path), read, 200)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_mutated_files(name: str, tmp_path: Path) -> None:
    write, read = FORMATS[name]
    check_mutations(write(tmp_path), read, 5000, seed=1)
