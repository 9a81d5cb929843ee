"""Run the command line in its own process, and read the checkpoints that it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from upstreams.formats import checkpoint


def superbit(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line and capture its output."""
    command = [sys.executable, "-m", "superbit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint."""
    return checkpoint.read(path)[1]


def equal(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> bool:
    """True if both hold the same tensors, bit for bit."""
    return ours.keys() == reference.keys() and all(torch.equal(ours[k], reference[k]) for k in ours)
