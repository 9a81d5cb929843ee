"""Upstream names, the checkpoints behind them, and what they cost."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from upstreams.config import ModelConfig, preset, preset_names
from upstreams.errors import UserError, nearest
from upstreams.quantization.spec import WIDTHS

if TYPE_CHECKING:
    from upstreams.model import AudioEncoder

CHECKPOINTS = "SUPERBIT_CHECKPOINTS"
DEFAULT_FOLDER = Path("runs/superb/checkpoints")
LOCAL = "superbit_local"
_log = logging.getLogger(__name__)


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


def shape(name: str) -> ModelConfig:
    """The model behind an upstream name, bits included, whether or not it has a checkpoint.

    Raises UserError on an unknown name, and on superbit_local, whose shape is its checkpoint's.
    """
    choices = [n for n in names() if n != LOCAL]
    if name not in choices:
        raise UserError(f"no upstream or checkpoint file is called {name!r}: {nearest(name, choices)}")
    base = max((p for p in preset_names() if name == p or name.startswith(f"{p}_")), key=len)
    suffix = name.removeprefix(base).removeprefix("_")
    return dataclasses.replace(preset(base), bits=suffix if suffix.startswith("w") else "w32a32")


def is_file(target: str) -> bool:
    """True if `target` is a checkpoint file's path, not an upstream name."""
    return target.endswith(".safetensors") or os.sep in target


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
    _log.debug("upstream %s: %s", name, path)
    return path


def costed(path: Path) -> AudioEncoder:
    """The model whose modules say what a checkpoint costs: a packed one costs what it was packed from."""
    from upstreams.formats import checkpoint
    from upstreams.packed import file

    return checkpoint.build(file.read(path).config).eval() if file.is_packed(path) else checkpoint.load(path)


def describe(name: str, ckpt: str | os.PathLike[str] | None = None) -> Description:
    """Parameters, MACs over the SUPERB leaderboard's 32 utterances, and storage of an upstream's weights.

    Knows this project's names and s3prl's fbank and fbank_no_cmvn; raises UserError on any other.
    """
    from upstreams import cost

    if name in ("fbank", "fbank_no_cmvn"):
        return Description(parameters=0, macs=cost.superb_fbank_macs(), storage_bytes=0)
    costs = cost.profile(costed(checkpoint_path(name, ckpt)), cost.SUPERB_SAMPLES)
    return Description(
        parameters=sum(c.parameters for c in costs),
        macs=sum(c.macs for c in costs),
        storage_bytes=sum(c.storage_bytes for c in costs),
    )
