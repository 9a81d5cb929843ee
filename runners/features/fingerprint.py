"""Digest of everything that the features of a waveform depend on: features with another digest are not reused."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from upstreams.files import sha256

FORMAT = 1  # of the records; increment when it changes


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


@functools.cache
def code_version() -> str:
    """Return a digest of all code that turns waveforms into features: this project's upstreams, torch and s3prl."""
    import upstreams
    from upstreams.versions import versions

    found = versions()
    digest = hashlib.sha256(f"{found['torch']} {found['s3prl']}".encode())
    folder = Path(upstreams.__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
