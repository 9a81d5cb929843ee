"""One stage in the process that an engine has started for it."""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from runners.matrix.graph import StageT
from upstreams.errors import UserError


def run_logged(run: Callable[[StageT], object], stage: StageT, log: Path) -> str | None:
    """Run the stage with one torch thread, and append all output to the log; return the reason if it fails.

    The process belongs to the stage: its output stays redirected afterwards.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stream = log.open("a", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    _show_warnings_once()
    import torch

    torch.set_num_threads(1)
    try:
        run(stage)
    # SystemExit as well: argparse raises it, and the process would look as if it had succeeded.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        stream.flush()
        if isinstance(error, UserError):  # one sentence, whole: its end says what to do
            return " ".join(str(error).split())
        text = textwrap.shorten(str(error), 300, placeholder=" ...") or "no message"
        return f"{type(error).__name__}: {text}"
    return None


def _show_warnings_once() -> None:
    """From now on, show each warning of this process once.

    Python's own filters `default` and `once` forget what they have shown whenever a library enters
    `warnings.catch_warnings()`, which torch and s3prl do at every step.
    """
    show = warnings.showwarning
    shown: set[tuple[type[Warning], str, str, int]] = set()

    def show_once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        key = (category, str(message), filename, lineno)
        if key not in shown:
            shown.add(key)
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_once
