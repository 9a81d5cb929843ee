"""Several processes that train one model, as torchrun starts them (WORLD_SIZE and its companions); one without it.

Gradients are averaged by hand instead of by DistributedDataParallel: every module that is trained here fits one
collective, and a module whose parameters are not all used in a step needs no search for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> torch.device:
    """Meet the other processes, if there are any, and return this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Go on when every process has come here."""
    if world() > 1:
        dist.barrier()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one collective."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share(count: Tensor) -> Tensor:
    """What to multiply a mean over `count` items by, so that the processes' mean is that over all of their items."""
    if world() == 1:
        return torch.ones_like(count)
    total = count.clone()
    dist.all_reduce(total)
    return count * world() / total


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in at least one process."""
    if world() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)
