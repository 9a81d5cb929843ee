"""Counts the CTC targets that are too long for their utterances: their loss would be infinite, and s3prl hides it.

CTC needs a frame for each symbol and one more between equal neighbours (Graves et al., 2006, section 3). s3prl's
zero_infinity sets the loss of a target that is too long to 0; at 40 ms per frame a few are to be expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class TargetCounts:
    """Number of targets, and of those that CTC cannot align to their frames."""

    total: int = 0
    unalignable: int = 0

    def add(self, targets: Tensor, frames: Tensor, lengths: Tensor) -> None:
        """Count targets (batch, symbols) with `lengths` (batch,) symbols and `frames` (batch,) frames."""
        for target, available, length in zip(targets.cpu(), frames.tolist(), lengths.tolist(), strict=True):
            symbols = target[:length]
            needed = length + int((symbols[1:] == symbols[:-1]).sum())
            self.unalignable += needed > available
            self.total += 1

    def print_counts(self, split: str) -> None:
        """Print the counts if there are targets; of several ranks, the first prints its own."""
        if self.total and os.environ.get("RANK", "0") == "0":
            print(
                f"{split} targets that are too long for CTC (more symbols than frames): "
                f"{self.unalignable} of {self.total}"
            )

    def log(self, prefix: str, logger: Any, step: int) -> None:
        """Write `<prefix>-targets` and `<prefix>-unalignable_targets` to a TensorBoard writer."""
        if self.total:
            logger.add_scalar(f"{prefix}-targets", self.total, global_step=step)
            logger.add_scalar(f"{prefix}-unalignable_targets", self.unalignable, global_step=step)


@contextmanager
def count_targets(downstream: nn.Module, training: bool) -> Iterator[TargetCounts]:
    """Inside the block, count the targets that a downstream's CTCLoss receives in training or in evaluation mode.

    A downstream without a CTCLoss gives no counts.
    """
    counts = TargetCounts()
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
