"""A command of superbit in one process, or in several that train together as under torchrun."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import runners
from upstreams.errors import UserError

END_SECONDS = 60.0  # for the other processes to save and end after one has failed


def run_superbit(arguments: Sequence[str], *, processes: int, on_gpu: bool, lock: int) -> None:
    """Run `superbit ARGUMENTS` in child processes that write to this process's output; wait until they have ended.

    on_gpu: one of the visible GPUs for each process; otherwise they see none. lock: file descriptor that they inherit.
    They end when this process dies. Raises UserError if one fails; the others are ended then.
    """
    environment = os.environ | {
        "PYTHONPATH": python_path(),
        "TQDM_MININTERVAL": "5",  # the output is a file
        **({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    command = [sys.executable, "-m", "runners.matrix.child", str(os.getpid()), *arguments]
    together: list[dict[str, str]] = [{}]
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        together = [address | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [subprocess.Popen(command, env=environment | extra, pass_fds=(lock,)) for extra in together]
    try:
        while not (failed := [process for process in running if process.poll()]):
            if all(process.poll() == 0 for process in running):
                return
            time.sleep(0.05)
        code = failed[0].returncode
    finally:
        _end(running)
    raise UserError(
        f"superbit {arguments[0]} " + (f"was ended by signal {-code}" if code < 0 else f"ended with code {code}")
    )


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + END_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def shell_command(arguments: Sequence[str], processes: int) -> str:
    """Return the shell command that does the same."""
    start = ["superbit"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "superbit"]
    return shlex.join([*start, *arguments])


def python_path() -> str:
    """Return a PYTHONPATH with which other processes import the same code as this one."""
    here = str(Path(runners.__file__).parents[1])
    return os.pathsep.join([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
