"""One .safetensors file = weights, configuration, bits and provenance. Loading one never runs code."""

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
    """Write `model` (and the pre-training head, which distillation needs) with its configuration.

    provenance: how it came to be (recipe, seed, steps, versions ...), kept as JSON.
    """
    tensors = {f"model.{k}": v.cpu().contiguous() for k, v in model.state_dict().items()}
    if head is not None:
        tensors |= {f"head.{k}": v.cpu().contiguous() for k, v in head.state_dict().items()}
    about = {"format": FORMAT, "config": dataclasses.asdict(model.config), "provenance": provenance}
    about["digest"] = _digest(tensors, about)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={CHECKPOINT: json.dumps(about)})


def read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """The configuration, all tensors and the provenance of a checkpoint.

    Raises UserError when the file is missing, truncated, altered since it was written, or no checkpoint of this
    project.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: a .safetensors file that `superbit pretrain` wrote is expected")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if PACKED in metadata:
                raise UserError(f"{path} is packed, which is for running it: give the checkpoint it was packed from")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata[CHECKPOINT])
        config = from_dict(ModelConfig, about["config"], f"the configuration in {path}")
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or is no superbit checkpoint ({type(error).__name__}: {error})") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has checkpoint format {about.get('format')}, but this version reads {FORMAT}")
    digest = about.pop("digest", None)  # the first checkpoints have none
    if digest not in (None, _digest(tensors, about)):
        raise UserError(f"{path} was altered after it was written: its contents do not fit its digest; get it anew")
    _log.debug("read %s: %s, %s", path, config.name, config.bits)
    return config, tensors, about["provenance"]


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """SHA-256 of all tensors, their names, types and shapes, and of what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build(config: ModelConfig) -> AudioEncoder:
    """The model of that configuration, quantized to its bits, randomly initialised."""
    model = AudioEncoder(config)
    quantize(model, config.bits, config.quantization)
    return model


def load(path: Path) -> AudioEncoder:
    """The model of a checkpoint, in eval mode. Raises UserError as `read` does, or when its tensors do not fit."""
    config, tensors, _ = read(path)
    model = build(config)
    fill(model, tensors, "model.", path)
    return model.eval()


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load the tensors under `prefix` into `module`; raises UserError when a name or shape does not fit."""
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise UserError(f"{path} does not fit its own configuration: {problem}") from error
