"""Counts the CTC targets that need more frames than their utterances have: their loss is infinite, and hidden.

CTC needs a frame for each symbol and one more between equal neighbours (Graves et al., 2006, section 3). s3prl's
zero_infinity makes the loss of a target without them 0; at 40 ms a frame some are to be expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Targets:
    """How many there were, and how many of them were too long for their frames."""

    total: int = 0
    unalignable: int = 0

    def add(self, targets: Tensor, frames: Tensor, lengths: Tensor) -> None:
        """Count (batch, symbols) targets, of `lengths` (batch,) symbols in `frames` (batch,) frames."""
        for target, available, length in zip(targets.cpu(), frames.tolist(), lengths.tolist(), strict=True):
            symbols = target[:length]
            needed = length + int((symbols[1:] == symbols[:-1]).sum())
            self.unalignable += needed > available
            self.total += 1

    def say(self, split: str) -> None:
        """Print the numbers, where there were targets; of several processes the first prints its own."""
        if self.total and os.environ.get("RANK", "0") == "0":
            print(f"{split} targets that need more frames than there are: {self.unalignable} of {self.total}")

    def log(self, prefix: str, logger: Any, step: int) -> None:
        """Give `<prefix>-targets` and `<prefix>-unalignable_targets` to a TensorBoard writer."""
        if self.total:
            logger.add_scalar(f"{prefix}-targets", self.total, global_step=step)
            logger.add_scalar(f"{prefix}-unalignable_targets", self.unalignable, global_step=step)


@contextmanager
def counted(downstream: nn.Module, training: bool) -> Iterator[Targets]:
    """Inside the block, count what a downstream's CTCLoss is given in training mode, or in evaluation mode.

    Of a downstream without one there is nothing to count.
    """
    counts = Targets()
    objective = getattr(getattr(downstream, "module", downstream), "objective", None)  # DDP wraps it
    if not isinstance(objective, nn.CTCLoss):
        yield counts
        return

    def count(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        if module.training == training:
            _, targets, frames, lengths = inputs
            counts.add(targets, frames, lengths)

    handle = objective.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()
