"""The checkpoints that s3prl writes during training: `states-<step>.ckpt`, and the best on dev."""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

from upstreams.errors import UserError

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


def read_state(path: str | Path) -> dict[str, Any]:
    """Return the contents of one of s3prl's checkpoints, on the CPU; nothing in the file can run code.

    Keys: `Args`, `Config`, `Featurizer`, `Downstream`, `Optimizer`, `Step`, ... Raises UserError if there is no such
    file, if a part of it is damaged, and if it holds something else.
    """
    import torch

    # s3prl stores its arguments as they are. The permission must last, not end with a `with` block: upstreams.s3prl
    # gives the same one, and the end of the block would take it away.
    torch.serialization.add_safe_globals([argparse.Namespace])
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch.load does not compare checksums: one wrong bit would become a wrong weight.
                if part := archive.testzip():
                    raise UserError(f"the checkpoint {path} is damaged: the checksum of {part} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # On damaged bytes torch.load and zipfile raise errors of every type.
    except Exception as error:
        # torch's own message is a paragraph on loading files that run code, which nothing here does.
        raise UserError(
            f"the checkpoint {path} is damaged, or not one of s3prl's: torch cannot read it ({type(error).__name__})"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"the checkpoint {path} is not one of s3prl's: it holds a {type(state).__name__}")
    return state
