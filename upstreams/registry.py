"""Upstream names, the checkpoints behind them, and what they cost."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from upstreams.config import ModelConfig, preset, preset_names
from upstreams.errors import UserError, nearest
from upstreams.quantization.spec import WIDTHS

if TYPE_CHECKING:
    from upstreams.model import AudioEncoder

CHECKPOINTS = "SUPERBIT_CHECKPOINTS"
DEFAULT_FOLDER = Path("runs/superb/seed0/checkpoints")
SHIPPED = Path(__file__).parent / "shipped"  # packed checkpoints in this package; their README.md is the model card
LOCAL = "superbit_local"
_log = logging.getLogger(__name__)


class Description(TypedDict):
    """Cost of an upstream: parameters, multiply-accumulates on SUPERB's 32 utterances, bytes of its weights."""

    parameters: int
    macs: int | None  # None: not known
    storage_bytes: int


def names() -> list[str]:
    """Return all upstream names: superbit_local, and each preset, plain, `_untrained` and with each bit width."""
    bits = [f"w{w}a{a}" for w in WIDTHS for a in WIDTHS if (w, a) != (32, 32)]
    suffixes = ["", "_untrained", *(f"_{b}" for b in bits)]
    return sorted([LOCAL, *(p + s for p in preset_names() for s in suffixes)])


def model_config(name: str) -> ModelConfig:
    """Return the configuration of an upstream, bits included; no checkpoint is needed.

    Raises UserError on an unknown name, and on superbit_local, whose checkpoint defines the configuration.
    """
    choices = [n for n in names() if n != LOCAL]
    if name not in choices:
        raise UserError(f"there is no upstream or checkpoint file {name!r}: {nearest(name, choices)}")
    base = max((p for p in preset_names() if name == p or name.startswith(f"{p}_")), key=len)
    suffix = name.removeprefix(base).removeprefix("_")
    return dataclasses.replace(preset(base), bits=suffix if suffix.startswith("w") else "w32a32")


def is_file(target: str) -> bool:
    """True if `target` is the path of a checkpoint, not an upstream name."""
    return target.endswith(".safetensors") or os.sep in target


def checkpoint_path(name: str, ckpt: str | os.PathLike[str] | None = None) -> Path:
    """Return the checkpoint of an upstream: `ckpt` if given, else <name>.safetensors in $SUPERBIT_CHECKPOINTS.

    The folder defaults to that of `make superb`, runs/superb/seed0/checkpoints. If it lacks the file, a checkpoint that
    is part of this package is used, and a message says so. Raises UserError on an unknown name and on a missing file.
    """
    if name not in names():
        raise UserError(f"there is no upstream {name!r}: {nearest(name, names())}")
    if ckpt is not None:
        return Path(ckpt)
    if name == LOCAL:
        raise UserError("superbit_local needs a checkpoint: add -k FILE.safetensors")
    path = Path(os.environ.get(CHECKPOINTS, DEFAULT_FOLDER)) / f"{name}.safetensors"
    shipped = SHIPPED / path.name
    if not path.is_file() and shipped.is_file():
        _log.info("%s: there is no %s, so the checkpoint that comes with superbit is used", name, path)
        return shipped
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint for {name} at {path}: set {CHECKPOINTS} to the folder that holds {path.name}, "
            "or give the file with -k"
        )
    _log.debug("upstream %s: %s", name, path)
    return path


def check_architecture(name: str, config: ModelConfig, path: str | os.PathLike[str]) -> None:
    """Raise UserError unless a checkpoint's configuration is the one that an upstream name promises, bits included.

    Dropout, which only training uses, may differ, and so may the normalisation of a waveform: the library of a public
    checkpoint decides it.
    """
    if name == LOCAL:
        return
    expected = model_config(name)
    without = {"dropout": 0.0, "layerdrop": 0.0}
    for part in ("front_end", "encoder", "bits"):
        ours, theirs = getattr(expected, part), getattr(config, part)
        if part == "encoder":
            ours, theirs = (dataclasses.replace(encoder, **without) for encoder in (ours, theirs))
        if part == "front_end" and expected.front_end.kind == config.front_end.kind == "waveform":
            theirs = dataclasses.replace(
                theirs, normalisation=ours.normalisation, normalisation_eps=ours.normalisation_eps
            )
        if ours != theirs:
            raise UserError(
                f"{path} holds a {config.name} with {_difference(theirs, ours)}, but {name} has "
                f"{_difference(ours, theirs)}: use the upstream {LOCAL} for it"
            )


def _difference(config: Any, other: Any) -> str:
    """Return the values of `config` that are different in `other`, for a message."""
    if isinstance(config, str):
        return f"bits {config}"
    values = dataclasses.asdict(config)
    return ", ".join(f"{key} {value}" for key, value in values.items() if value != getattr(other, key))


def cost_model(path: Path) -> AudioEncoder:
    """Return the model from whose modules the cost of a checkpoint is computed, in eval mode.

    For a packed file this is the quantized model that it was packed from, without its weights.
    """
    from upstreams.formats import checkpoint
    from upstreams.packed import file

    return checkpoint.skeleton(file.read(path).config).eval() if file.is_packed(path) else checkpoint.load(path)


def describe(name: str, ckpt: str | os.PathLike[str] | None = None) -> Description:
    """Return the cost of an upstream: one of this project's, or s3prl's fbank or fbank_no_cmvn.

    Raises UserError on an unknown name and on a missing checkpoint.
    """
    from upstreams import cost

    if name in ("fbank", "fbank_no_cmvn"):
        return Description(parameters=0, macs=cost.superb_fbank_macs(), storage_bytes=0)
    costs = cost.profile(cost_model(checkpoint_path(name, ckpt)), cost.SUPERB_SAMPLES)
    return Description(
        parameters=sum(c.parameters for c in costs),
        macs=sum(c.macs for c in costs),
        storage_bytes=sum(c.storage_bytes for c in costs),
    )
