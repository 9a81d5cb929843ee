"""Upstream names, the checkpoints behind them, and what they cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from upstreams.config import preset_names
from upstreams.errors import UserError, nearest
from upstreams.quantization.spec import WIDTHS

CHECKPOINTS = "SUPERBIT_CHECKPOINTS"
DEFAULT_FOLDER = Path("runs/superb/checkpoints")
LOCAL = "superbit_local"


class Description(TypedDict):
    """What an upstream costs: parameters, multiply-accumulates on SUPERB's 32 utterances, bytes of its weights."""

    parameters: int
    macs: int
    storage_bytes: int


def names() -> list[str]:
    """All upstream names of this project: presets, untrained, every bit-width, and superbit_local."""
    bits = [f"w{w}a{a}" for w in WIDTHS for a in WIDTHS if (w, a) != (32, 32)]
    suffixes = ["", "_untrained", *(f"_{b}" for b in bits)]
    return sorted([LOCAL, *(p + s for p in preset_names() for s in suffixes)])


def checkpoint_path(name: str, ckpt: str | os.PathLike[str] | None = None) -> Path:
    """The file behind an upstream name: `ckpt` when given, else <name>.safetensors in $SUPERBIT_CHECKPOINTS.

    Without the environment variable runs/superb/checkpoints is searched, where `make superb` writes.
    Raises UserError on an unknown name or when there is no such file.
    """
    if name not in names():
        raise UserError(f"no upstream is called {name!r}: {nearest(name, names())}")
    if ckpt is not None:
        return Path(ckpt)
    if name == LOCAL:
        raise UserError("superbit_local needs a checkpoint: add -k FILE.safetensors")
    path = Path(os.environ.get(CHECKPOINTS, DEFAULT_FOLDER)) / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint for {name} at {path}: set {CHECKPOINTS} to the folder that holds {path.name}, "
            "or give the file with -k"
        )
    return path


def describe(name: str, ckpt: str | os.PathLike[str] | None = None) -> Description:
    """Parameters, MACs over the SUPERB leaderboard's 32 utterances, and storage of an upstream's weights.

    Knows this project's names and s3prl's fbank and fbank_no_cmvn; raises UserError on any other.
    """
    from upstreams import checkpoint, cost
    from upstreams.packed import file

    if name in ("fbank", "fbank_no_cmvn"):
        return Description(parameters=0, macs=cost.superb_fbank_macs(), storage_bytes=0)
    path = checkpoint_path(name, ckpt)
    # A packed model costs what the quantized one does that it was packed from.
    model = checkpoint.build(file.read(path).config) if file.is_packed(path) else checkpoint.load(path)
    return Description(
        parameters=cost.parameters(model),
        macs=cost.superb_macs(model),
        storage_bytes=cost.storage_bytes(model),
    )
