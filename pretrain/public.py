"""`superbit import`: a public HuBERT checkpoint becomes one of this project's."""

from __future__ import annotations

from pathlib import Path

from pretrain.objectives.hubert import CodewordHead
from upstreams.config import preset as read_preset
from upstreams.files import sha256
from upstreams.formats import checkpoint
from upstreams.formats.public_hubert import load_public
from upstreams.versions import versions


def import_checkpoint(preset: str, file: Path, out: Path) -> tuple[Path, bool]:
    """Write OUT/checkpoints/<preset>.safetensors; return its path and whether it has the pre-training head.

    Raises UserError on an unknown preset and on a file that cannot be read or is of another architecture.
    """
    model, tensors = load_public(file, read_preset(preset))
    head = None
    if tensors:
        head = CodewordHead(model.config.encoder.dim, *tensors["codewords"].shape)
        head.load_state_dict(tensors)
    path = out / "checkpoints" / f"{preset}.safetensors"
    provenance = {"imported": file.name, "sha256": sha256(file), **versions(), "stage": "pretrained"}
    checkpoint.save(path, model, head, provenance)
    return path, head is not None
