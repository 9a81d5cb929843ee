"""One cell in the process that an engine has found for it."""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from upstreams.errors import UserError

CellT = TypeVar("CellT")


def run_logged(run: Callable[[CellT], object], cell: CellT, log: Path) -> str | None:
    """Run the cell with one torch thread, all that this process prints going to the log; the reason if it fails.

    The process is the cell's: its output stays redirected.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("a", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    import torch

    torch.set_num_threads(1)
    try:
        run(cell)
    # SystemExit too: argparse raises it, and it would look like a cell that was done.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        stream.flush()
        text = textwrap.shorten(str(error), 300, placeholder=" ...") or "no message"
        return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return None
