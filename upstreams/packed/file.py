"""A packed file: safetensors whose quantized weights are bits, with configuration and provenance. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError
from upstreams.files import atomic_write

KEY = "superbit-packed"
FORMAT = 1
DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))

Arrays = dict[str, NDArray[Any]]


def write(path: Path, config: ModelConfig, tensors: Arrays, provenance: dict[str, Any]) -> None:
    """Write a packed model's tensors, all uint8 or float32."""
    about = {"format": FORMAT, "config": dataclasses.asdict(config), "provenance": provenance}
    about["digest"] = _digest(tensors, about)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(about)})


def is_packed(path: Path) -> bool:
    """Whether a file says that it is a packed one; of one that cannot be read it is not said."""
    try:
        with safe_open(path, framework="np") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read(path: Path) -> tuple[ModelConfig, Arrays, dict[str, Any]]:
    """The configuration, all tensors and the provenance of a packed file.

    Raises UserError when the file is missing, truncated, altered, holds what is no number, or is no packed file. That
    its tensors are those of its configuration is for the caller to check, who takes them one by one.
    """
    if not path.is_file():
        raise UserError(f"no packed file at {path}: a .safetensors file that `superbit pack` wrote is expected")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata[KEY])
        config = from_dict(ModelConfig, about["config"], f"the configuration in {path}")
        provenance, digest = about["provenance"], about.pop("digest")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or is no packed file ({type(error).__name__}: {error})") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has packed format {about.get('format')}, but this version reads {FORMAT}")
    if digest != _digest(tensors, about):
        raise UserError(f"{path} was altered after it was written: its contents do not fit its digest; pack it anew")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{name} in {path} is of type {tensor.dtype}, but must be uint8 or float32")
        if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
            raise UserError(f"{name} in {path} holds NaN or infinite values")
    return config, tensors, provenance


def _digest(tensors: Arrays, about: dict[str, Any]) -> str:
    """SHA-256 of all tensors, their names, types and shapes, and of what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_codes(name: str, codes: NDArray[np.uint8], columns: int, bits: int) -> None:
    """Raises UserError when bits are set behind a row's last weight, which would be counted as weights."""
    spare = codes.shape[1] * 8 - columns * bits
    if codes.size and spare and (codes[:, -1] >> (8 - spare)).any():
        raise UserError(f"{name} has bits set behind the last of its {columns} weights a row: the file is damaged")


def code_bytes(columns: int, bits: int) -> int:
    """Bytes of one row of that many weights."""
    return -(-columns * bits // 8)
