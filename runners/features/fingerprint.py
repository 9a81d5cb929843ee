"""Digest of everything that the features of a waveform depend on: features with another digest are not reused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from runners.features.code import code_version
from upstreams.files import sha256

FORMAT = 2  # of the records; increment when it changes


def fingerprint(name: str, files: Sequence[str | Path | None], upstream: nn.Module, device: str) -> str:
    """Return a folder name that identifies the features of an upstream.

    It depends on the upstream's name, on the content of its checkpoint and configuration (`files`), on its weights, on
    the code that computes features, on the torch version and on the kind of device.
    """
    digest = hashlib.sha256()
    for file in files:
        if not file or not Path(file).is_file():
            continue  # a URL: the weights below identify it
        digest.update(sha256(Path(file)).encode())
    for key, tensor in sorted(upstream.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(f"{FORMAT} {code_version()} {torch.device(device).type}".encode())
    return f"{name}-{digest.hexdigest()[:24]}"


def numerics(device: torch.device) -> str:
    """Return the modes of torch that change what a forward pass computes: autocast's dtype and reduced precision."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    tensor_cores = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return f"autocast {autocast}, matrix products {torch.get_float32_matmul_precision()}, tf32 {tensor_cores}"
