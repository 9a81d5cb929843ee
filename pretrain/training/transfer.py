"""Copies between host and device that neither waits for: micro-batches one way, a step's values the other way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Sender:
    """Copies micro-batches to a device beside its computation: on CUDA in a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, move: Callable[[Any], Any], batch: Any) -> Any:
        """Return move(batch), whose copies the device makes while it computes. Call `arrived` before it is used."""
        with torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            return move(batch)

    def arrived(self, batch: Any) -> Any:
        """Return the batch; what the device computes from now on waits for its copies. The host does not."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.stream.device)
            current.wait_stream(self.stream)
            for tensor in _tensors(batch):
                tensor.record_stream(current)  # its memory belongs to the other stream
        return batch


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (tuple, list)):
        for part in content:
            yield from _tensors(part)
    elif hasattr(content, "__dict__"):
        yield from _tensors(list(vars(content).values()))


Key = tuple[str, str]  # kind and name of a value


class LateValues:
    """Values of a step, copied to the host in one piece while the device computes; `read` waits for this copy only."""

    def __init__(self, values: dict[Key, Tensor]) -> None:
        self.shapes = {name: value.shape for name, value in values.items()}
        flat = torch.cat([value.detach().double().flatten() for value in values.values()])
        self.flat = flat.to("cpu", non_blocking=True)  # into memory that cannot be paged out
        self.copied = torch.cuda.Event() if flat.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def read(self) -> dict[Key, Tensor]:
        """Return the values on the CPU, in double precision."""
        if self.copied is not None:
            self.copied.synchronize()
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
