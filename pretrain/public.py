"""`superbit import`: a public HuBERT checkpoint becomes one of this project's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from pretrain.objectives.hubert import CodewordHead
from upstreams.config import preset as read_preset
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.formats import checkpoint, public_files
from upstreams.formats.public_hubert import load_public
from upstreams.formats.tensors import assign
from upstreams.model import AudioEncoder, without_values
from upstreams.versions import versions


def import_checkpoint(preset: str, source: Path, out: Path, name: str | None = None) -> tuple[Path, bool]:
    """Write OUT/checkpoints/<name>.safetensors; return its path and whether it has the pre-training head.

    source: a file, a folder or an index of shards. name: None: that of the preset. A checkpoint of that name with the
    same contents is left as it is. Raises UserError on an unknown preset, on a source that cannot be read or is of
    another architecture, and if another checkpoint has the name.
    """
    config = dataclasses.replace(read_preset(preset), name=preset if name is None else name)
    model, tensors = load_public(source, config)
    head = None
    if tensors:
        with without_values():
            head = CodewordHead(model.config.encoder.dim, *tensors["codewords"].shape)
        assign(head, tensors)
    path = out / "checkpoints" / f"{config.name}.safetensors"
    if path.exists():
        if _is_same(path, model, tensors):
            return path, head is not None
        raise UserError(f"{path} exists and is another checkpoint: give another --name or --out")
    files = public_files.files_of(source)
    imported: object = files[0].name if len(files) == 1 else [file.name for file in files]
    digests: object = sha256(files[0]) if len(files) == 1 else [sha256(file) for file in files]
    checkpoint.save(path, model, head, {"imported": imported, "sha256": digests, **versions(), "stage": "pretrained"})
    return path, head is not None


def _is_same(path: Path, model: AudioEncoder, head: dict[str, Tensor]) -> bool:
    """True if a checkpoint holds this model with this head."""
    config, tensors, _ = checkpoint.read(path)
    wanted = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"head.{k}": v for k, v in head.items()}
    return (
        config == model.config
        and tensors.keys() == wanted.keys()
        and all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    )
