"""Superbit in a script of your own, and `python -m superbit ...`, which is the command `superbit`.

>>> import superbit
>>> "transformer_mini" in superbit.names()
True

Importing this module imports neither torch nor s3prl.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

# `python -m` searches the current folder first. A folder `runners` there must not hide this project's.
if (
    __name__ == "__main__"
    and not getattr(sys.flags, "safe_path", False)  # from Python 3.11 on, `python -P -m` omits the current folder
    and Path(sys.path[0]).resolve() != Path(__file__).resolve().parent
):
    del sys.path[0]

if TYPE_CHECKING:
    from upstreams.model import AudioEncoder

__all__ = ["load", "names", "register"]
__version__ = version("superbit")


def register() -> list[str]:
    """Put this project's upstream names into `s3prl.hub`; return the names.

    Call it before s3prl is imported: it also makes s3prl 0.4.18 work on the supported versions of torch. Afterwards
    `s3prl.hub.<name>`, `s3prl.nn.S3PRLUpstream("<name>")` and run_downstream's `-u <name>` find these upstreams.
    """
    import upstreams

    return upstreams.register()


def names() -> list[str]:
    """Return all upstream names of this project: presets, untrained copies, every bit width, and superbit_local."""
    from upstreams import registry

    return registry.names()


def load(name_or_file: str | os.PathLike[str]) -> AudioEncoder:
    """Return the model of an upstream name or of a checkpoint file, packed or not, in eval mode.

    The model maps (batch, samples) at 16 kHz and (batch,) lengths to a tuple of hidden states (batch, frames, dim). A
    name's checkpoint is NAME.safetensors in $SUPERBIT_CHECKPOINTS (default:
    runs/superb/seed0/checkpoints). Raises UserError, a ValueError, when the name is unknown or the file cannot be read.
    """
    from upstreams import registry
    from upstreams.packed import convert

    target = os.fspath(name_or_file)
    is_file = not isinstance(name_or_file, str) or registry.is_file(target)
    return convert.load(Path(target) if is_file else registry.checkpoint_path(target))


if __name__ == "__main__":
    from runners.cli import main

    main()
