"""Checkpoints: a .safetensors file with weights, configuration and provenance. Loading a checkpoint never runs code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError, shown
from upstreams.files import atomic_write
from upstreams.formats import contents
from upstreams.formats.metadata import CHECKPOINT, PACKED
from upstreams.formats.tensors import assign, misfit, not_finite
from upstreams.model import AudioEncoder, without_values
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
    with _readable(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if PACKED in metadata:
                raise UserError(f"{path} is a packed file, for inference: give the checkpoint that it was packed from")
            description = _mapping(json.loads(metadata[CHECKPOINT]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = from_dict(ModelConfig, description["config"], f"the configuration in {path}")
        provenance = _mapping(description["provenance"])
        if description.get("format") != FORMAT:
            raise UserError(
                f"{path} has checkpoint format {shown(description.get('format'))}, but this version reads format "
                f"{FORMAT}"
            )
        digest = description.pop("digest", None)  # the first checkpoints have no digest
        if digest not in (None, _digest(tensors, description)):
            raise UserError(
                f"{path} was altered after it was written: its contents do not match its digest; copy it again"
            )
    _log.debug("read %s: %s, %s", path, config.name, config.bits)
    return config, tensors, provenance


def read_config(path: Path) -> ModelConfig:
    """Return the configuration of a checkpoint, packed or not, without reading its tensors.

    Raises UserError if the file is missing or no checkpoint of this project.
    """
    with _readable(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        description = _mapping(json.loads(metadata[PACKED] if PACKED in metadata else metadata[CHECKPOINT]))
        return from_dict(ModelConfig, description["config"], f"the configuration in {path}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every error of reading a checkpoint into a UserError that says what the file is."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}: give a .safetensors file that `superbit pretrain` wrote")
    try:
        yield
    except UserError:
        raise
    # Of the libraries and of Python, on damaged bytes, values of other types, deep JSON and numbers of any length.
    except (SafetensorError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = contents.described(path)
        reason = f"{type(error).__name__}: {error}" if what == contents.SAFETENSORS else f"it {what}"
        raise UserError(f"{path} is damaged or not a superbit checkpoint ({reason})") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{shown(value)} stands where a mapping is expected")
    return value


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
    model = skeleton(config)
    fill(model, tensors, "model.", path)
    return model.eval()


def skeleton(config: ModelConfig) -> AudioEncoder:
    """Return the model of `config` without values, on the meta device: for `fill`, and for shapes and costs."""
    with without_values():
        return build(config)


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Make the tensors under `prefix` those of `module`, which may be on the meta device.

    Raises UserError if a name, shape or type does not fit, before anything is allocated, and on NaN or infinity.
    """
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if problem := misfit(module.state_dict(), state):
        raise UserError(f"{path} does not fit its own configuration: {problem}")
    if name := not_finite(state):
        raise UserError(f"{prefix}{name} in {path} holds NaN or infinite values")
    assign(module, state)


def protect(out: Path) -> None:
    """Raise UserError if `out` is a checkpoint of this project, which no other file may replace."""
    try:
        with safe_open(out, framework="pt") as file:
            is_checkpoint = CHECKPOINT in (file.metadata() or {})
    except (OSError, SafetensorError):
        return
    if is_checkpoint:
        raise UserError(f"{out} is a checkpoint, which would be overwritten: give another file")
