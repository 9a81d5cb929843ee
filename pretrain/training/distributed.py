"""Training of one model by several processes that torchrun started (WORLD_SIZE, RANK, LOCAL_RANK); one without it.

Gradients are summed once a step by an explicit all-reduce, not by DistributedDataParallel: ranks may compute different
numbers of a step's micro-batches, and parameters that a step does not use (layerdrop) need no search.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from upstreams.errors import UserError

# A collective of a step that takes longer hangs: it ends the run with an error.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# The other ranks wait while rank 0 clusters a corpus. They wait in a gloo group of its own, because NCCL's watchdog
# ends a process that waits on it for long. If a process dies, torchrun ends the others at once.
WAIT_TIMEOUT = timedelta(days=7)
_waiting: list[dist.ProcessGroup] = []  # that group, if there is one


def initialize() -> torch.device:
    """Join the process group that torchrun's environment describes, if any; return this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # Flags and counts are CPU tensors: they go over gloo and never wait for a GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        _waiting.append(dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT))
        atexit.register(leave)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")  # TF32 where float32 is meant
    return device


def leave() -> None:
    """Destroy the process groups, whose threads must not live when the interpreter ends."""
    if dist.is_initialized():
        _waiting.clear()
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until every rank has called this function, however long that takes."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(()), group=_waiting[0])  # dist.barrier would pick a GPU


def micro_batches_of_rank(count: int) -> range:
    """Return which of a step's `count` micro-batches this rank computes. Raises UserError if a rank would have none."""
    if count < world_size():
        raise UserError(
            f"a step has {count} micro-batches, which {world_size()} processes cannot share: "
            "lower micro_batch_seconds, raise batch_seconds or start fewer processes"
        )
    return range(rank(), count, world_size())


def any_rank(flag: bool) -> bool:
    """True if the flag is set on at least one rank."""
    return flag if world_size() == 1 else bool(all_reduce(torch.tensor(float(flag))) > 0)


def agreed(flag: bool) -> bool:
    """Return rank 0's flag on every rank: ranks that looked at a file at different times must not disagree."""
    return broadcast(str(flag)) == "True"


def broadcast(text: str) -> str:
    """Return rank 0's text on every rank, however long rank 0 takes."""
    if world_size() == 1:
        return text
    texts: list[str | None] = [text]
    dist.broadcast_object_list(texts, group=_waiting[0], device=torch.device("cpu"))
    return str(texts[0])


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to every rank, however long rank 0 takes to call this function."""
    if world_size() == 1:
        return
    barrier()
    tensors = [*module.parameters(), *module.buffers()]
    for kind in sorted({(str(t.device), str(t.dtype)) for t in tensors}):
        alike = [t for t in tensors if (str(t.device), str(t.dtype)) == kind]
        flat = torch.cat([t.flatten() for t in alike])
        flat = flat.byte() if flat.dtype == torch.bool else flat  # gloo has no booleans
        dist.broadcast(flat, 0)
        for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def all_reduce_named(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum over all ranks of each name that any rank has, on the CPU; a rank without it counts as zero."""
    own = {name: tensor.double().cpu() for name, tensor in sums.items()}
    if world_size() == 1:
        return own
    everywhere: list[dict[str, torch.Size] | None] = [None] * world_size()
    dist.all_gather_object(everywhere, {name: tensor.shape for name, tensor in own.items()}, group=_waiting[0])
    shapes = {name: shape for known in everywhere for name, shape in (known or {}).items()}
    totals = {n: own.get(n, torch.zeros(shape, dtype=torch.float64)) for n, shape in sorted(shapes.items())}
    all_reduce_in_place(list(totals.values()))
    return totals


def all_reduce_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over all ranks, in one collective."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def all_reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace every gradient by its sum over all ranks; a gradient that no rank has stays None."""
    if world_size() == 1:
        return
    present = all_reduce(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
    for parameter, anywhere in zip(parameters, present, strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    all_reduce_in_place([p.grad for p in parameters if p.grad is not None])
