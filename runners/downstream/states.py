"""The checkpoints `states-<step>.ckpt` that s3prl writes during training."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"states-(\d+)\.ckpt")


def step_of(path: Path) -> int:
    """Return the training step in a checkpoint's name; raise ValueError if the name is not `states-<step>.ckpt`."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named states-<step>.ckpt")
    return int(match[1])


def latest_state(folder: str | Path) -> Path | None:
    """Return the checkpoint with the highest step in an experiment's folder, or None if it has none."""
    found = [path for path in Path(folder).glob("states-*.ckpt") if NAME.fullmatch(path.name)]
    return max(found, key=step_of, default=None)
