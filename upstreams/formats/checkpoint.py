"""Checkpoints: a .safetensors file with weights, configuration and provenance. Loading a checkpoint never runs code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.formats.metadata import CHECKPOINT, PACKED
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import quantize

FORMAT = 1
_log = logging.getLogger(__name__)


def save(path: Path, model: AudioEncoder, head: nn.Module | None, provenance: dict[str, Any]) -> None:
    """Write a checkpoint of `model`, with the pre-training head if there is one; distillation needs the head.

    provenance: how the model was made (recipe, seed, steps, versions ...); must be JSON.
    """
    tensors = {f"model.{k}": v.cpu().contiguous() for k, v in model.state_dict().items()}
    if head is not None:
        tensors |= {f"head.{k}": v.cpu().contiguous() for k, v in head.state_dict().items()}
    description = {"format": FORMAT, "config": dataclasses.asdict(model.config), "provenance": provenance}
    description["digest"] = _digest(tensors, description)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={CHECKPOINT: json.dumps(description)})


def read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Return the configuration, the tensors and the provenance of a checkpoint.

    Raises UserError if the file is missing, truncated, altered after it was written, or not a checkpoint of this
    project.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}: give a .safetensors file that `superbit pretrain` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if PACKED in metadata:
                raise UserError(f"{path} is a packed file, for inference: give the checkpoint that it was packed from")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(metadata[CHECKPOINT])
        config = from_dict(ModelConfig, description["config"], f"the configuration in {path}")
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or not a superbit checkpoint ({type(error).__name__}: {error})") from error
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {description.get('format')}, but this version reads format {FORMAT}"
        )
    digest = description.pop("digest", None)  # the first checkpoints have no digest
    if digest not in (None, _digest(tensors, description)):
        raise UserError(f"{path} was altered after it was written: its contents do not match its digest; copy it again")
    _log.debug("read %s: %s, %s", path, config.name, config.bits)
    return config, tensors, description["provenance"]


def read_config(path: Path) -> ModelConfig:
    """Return the configuration of a checkpoint, packed or not, without reading its tensors.

    Raises UserError if the file is missing or no checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        description = json.loads(metadata[PACKED] if PACKED in metadata else metadata[CHECKPOINT])
        return from_dict(ModelConfig, description["config"], f"the configuration in {path}")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or not a superbit checkpoint ({type(error).__name__}: {error})") from error


def _digest(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Return the SHA-256 of the metadata and of all tensors with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build(config: ModelConfig) -> AudioEncoder:
    """Return the model of `config`, randomly initialised and quantized to its bits."""
    model = AudioEncoder(config)
    quantize(model, config.bits, config.quantization)
    return model


def load(path: Path) -> AudioEncoder:
    """Return the model of a checkpoint in eval mode. Raises UserError as `read`, and if the tensors do not fit."""
    config, tensors, _ = read(path)
    model = build(config)
    fill(model, tensors, "model.", path)
    return model.eval()


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load the tensors under `prefix` into `module`. Raises UserError if a name or shape does not fit."""
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise UserError(f"{path} does not fit its own configuration: {problem}") from error
