"""s3prl's command line `run_downstream`: launchers of distributed training, and runs that must not touch a GPU."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from upstreams.s3prl.compat.packages import refuse_hugging_face_hub
from upstreams.s3prl.compat.patching import Fix, needs, replaced


@needs("hack_isinstance")
def keep_builtin_isinstance(helper: types.ModuleType) -> None:
    """Disable `hack_isinstance`: it replaces `builtins.isinstance` in the whole process, for DDP before torch 1.8."""
    helper.hack_isinstance = lambda: None  # type: ignore[attr-defined]


def launcher_arguments(argv: Sequence[str]) -> list[str]:
    """Return `argv` with the local rank in the form that run_downstream expects.

    torch.distributed.launch spells the flag --local-rank. torchrun passes no flag but sets LOCAL_RANK; without the
    flag every process would run as a single one, and all would write to one folder.
    """
    arguments = [a.replace("--local-rank", "--local_rank", 1) if a.startswith("--local-rank") else a for a in argv]
    given = any(argument.startswith("--local_rank") for argument in arguments)
    if not given and "LOCAL_RANK" in os.environ:
        arguments += ["--local_rank", os.environ["LOCAL_RANK"]]
    return arguments


@needs("get_downstream_args")
def accept_launchers(run_downstream: types.ModuleType) -> None:
    """Accept the local rank of torch.distributed.launch and torchrun in s3prl's own command line."""
    parse = run_downstream.get_downstream_args

    def get_downstream_args() -> Any:
        with replaced(sys, "argv", launcher_arguments(sys.argv)):
            return parse()

    run_downstream.get_downstream_args = get_downstream_args  # type: ignore[attr-defined]


@contextlib.contextmanager
def gpu_hidden() -> Iterator[None]:
    """Hide the GPU inside the block: torch reports none, and selecting one or moving a tensor to it does nothing.

    Speaker verification calls `Tensor.cuda` whatever the device.
    """
    with (
        replaced(torch.cuda, "is_available", lambda: False),
        replaced(torch.cuda, "set_device", lambda device: None),
        replaced(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor),
    ):
        yield


@needs("get_downstream_args", "main")
def run_on_the_given_device(run_downstream: types.ModuleType) -> None:
    """Keep a run with --device cpu off the GPU: s3prl enters torch.cuda.device and calls torch.cuda.set_device."""
    run = run_downstream.main

    def main() -> None:
        parsed = run_downstream.get_downstream_args()
        args = parsed[0]
        if args.hub == "huggingface" or args.push_to_hf_hub:
            refuse_hugging_face_hub()
        on_gpu = str(args.device).startswith("cuda")
        with (
            contextlib.nullcontext() if on_gpu else gpu_hidden(),
            replaced(run_downstream, "get_downstream_args", lambda: parsed),
        ):
            run()

    run_downstream.main = main  # type: ignore[attr-defined]


FIXES: dict[str, tuple[Fix, ...]] = {
    "s3prl.utility.helper": (keep_builtin_isinstance,),
    "s3prl.run_downstream": (accept_launchers, run_on_the_given_device),
}
