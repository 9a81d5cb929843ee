"""`superbit board RUNS`: TensorBoard on a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from upstreams.errors import UserError


def serve(runs: Path, host: str, port: int, say: Callable[[str], object]) -> None:
    """Show training curves, final metrics (HParams), tables and pictures of a run folder until Ctrl-C.

    Raises UserError if the folder does not exist or the port is in use.
    """
    if not runs.is_dir():
        raise UserError(f"{runs} does not exist: give a run folder of `superbit pretrain` or `superbit evaluate`")
    from tensorboard import program  # after the check: it takes a second to import

    board = program.TensorBoard()
    board.configure(argv=["superbit board", "--logdir", str(runs), "--host", host, "--port", str(port)])
    try:
        say(f"TensorBoard of {runs}: {board.launch()} (stop with Ctrl-C)")
    except program.TensorBoardServerException as error:
        raise UserError(f"TensorBoard cannot start: {' '.join(str(error).split())}") from None
    while True:
        time.sleep(3600)
