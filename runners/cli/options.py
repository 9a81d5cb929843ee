"""Options that several commands share, each with one spelling and one meaning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

Manifest = Annotated[Path, typer.Option(help="Manifest of the training audio: a .tsv file in fairseq's format.")]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0, max=2**32 - 1)]
Threads = Annotated[int, typer.Option(help="CPU threads that torch uses.", min=1)]
Workers = Annotated[int, typer.Option(help="Extra processes that read audio; 0: the main process reads it.", min=0)]
Out = Annotated[Path, typer.Option(help="Run folder for checkpoints, logs and results.")]
Corpora = Annotated[Path, typer.Option(help="Folder that holds the corpora.", envvar="SUPERBIT_CORPORA")]

_log = logging.getLogger(__name__)


def use_threads(threads: int) -> None:
    """Set the number of CPU threads that torch uses in this process."""
    import torch

    torch.set_num_threads(threads)
    _log.debug("torch %s, threads: %d, GPUs: %d", torch.__version__, threads, torch.cuda.device_count())
