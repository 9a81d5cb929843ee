"""Several processes that train one model, as torchrun starts them (WORLD_SIZE and its companions); one without it.

Gradients are summed by hand, once a step, instead of by DistributedDataParallel: processes may take different numbers
of a step's micro-batches, and a module whose parameters are not all used in a step (layerdrop) needs no search.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from upstreams.errors import UserError

# While the first process clusters a corpus, or another writes to a slow disk, the others wait; PyTorch's half an hour
# would end a run on LibriSpeech in its first stage. A process that dies ends the others through torchrun at once.
PATIENCE = timedelta(days=7)


def join() -> torch.device:
    """Meet the other processes, if there are any, and return this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # Flags and counts, which lie in the host's memory, go over gloo and never wait for a GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
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
        summed(torch.zeros(()))  # dist.barrier would pick a GPU


def share(micro_batches: int) -> range:
    """Which of a step's micro-batches this process computes. Raises UserError when some process would have none."""
    if micro_batches < world():
        raise UserError(
            f"{world()} processes cannot share the {micro_batches} micro-batches of a step: "
            "lower micro_batch_seconds, raise batch_seconds or start fewer processes"
        )
    return range(rank(), micro_batches, world())


def summed(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors."""
    if world() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    return flag if world() == 1 else bool(summed(torch.tensor(float(flag))) > 0)


def from_first(text: str) -> str:
    """What the first process calls it with, in every process."""
    if world() == 1:
        return text
    texts: list[str | None] = [text]
    dist.broadcast_object_list(texts, device=torch.device("cpu"))
    return str(texts[0])


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over the processes, in one collective."""
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace every gradient by its sum over the processes; one that no process has stays None."""
    if world() == 1:
        return
    present = summed(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
    for parameter, anywhere in zip(parameters, present, strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_in_place([p.grad for p in parameters if p.grad is not None])
