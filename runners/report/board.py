"""`superbit board RUNS`: TensorBoard on a runs' folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from upstreams.errors import UserError


def serve(runs: Path, host: str, port: int, say: Callable[[str], object]) -> None:
    """Show a runs' folder until Ctrl-C: training curves, final metrics as HParams, tables and pictures.

    Raises UserError when there is no such folder or the port is taken.
    """
    if not runs.is_dir():
        raise UserError(f"there is no folder {runs}: give the folder that training or `superbit evaluate` wrote to")
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(argv=["superbit board", "--logdir", str(runs), "--host", host, "--port", str(port)])
    try:
        say(f"{runs} is shown at {board.launch()} (Ctrl-C ends it)")
    except program.TensorBoardServerException as error:
        raise UserError(f"TensorBoard cannot start: {' '.join(str(error).split())}") from None
    while True:
        time.sleep(3600)
