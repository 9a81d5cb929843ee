"""Batch normalisation whose running statistics do not depend on how a step is split into micro-batches and ranks."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.training import distributed


class StepBatchNorm:
    """Average the running statistics of a module's batch normalisations over the micro-batches of a step.

    Every micro-batch starts from the values at the beginning of the step. The step's result is the mean over the values
    after each micro-batch, of all ranks. `num_batches_tracked` counts steps.

    Order of the calls in a step: `begin_step`; `begin_micro_batch` and `end_micro_batch` around each forward pass;
    `end_step`. `undo_step` restores the values at the beginning of the step, also after `end_step`. All of it is
    queued on the device; the host waits for nothing.
    """

    def __init__(self, module: nn.Module, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.running = [b for m in self.norms for b in (m.running_mean, m.running_var) if b is not None]
        self.start: list[torch.Tensor] = []
        self.sums: list[torch.Tensor] = []

    def begin_step(self) -> None:
        """Remember the values at the beginning of the step."""
        self.start = [buffer.clone() for buffer in self.running]
        self.sums = [torch.zeros_like(buffer) for buffer in self.running]

    def begin_micro_batch(self) -> None:
        """Set the running statistics to the values at the beginning of the step."""
        if self.running:
            torch._foreach_copy_(self.running, self.start)

    def end_micro_batch(self) -> None:
        """Add the running statistics that this micro-batch's forward pass left to the step's sums."""
        if self.running:
            torch._foreach_add_(self.sums, self.running)

    def end_step(self, step: int) -> None:
        """Set the running statistics to their mean over all micro-batches of step number `step`."""
        distributed.all_reduce_in_place(self.sums)
        if self.running:
            torch._foreach_copy_(self.running, torch._foreach_div(self.sums, self.micro_batches))
        self._set_count(step + 1)

    def undo_step(self, step: int) -> None:
        """Restore the values at the beginning of step number `step`."""
        self.begin_micro_batch()
        self._set_count(step)

    def undo_step_if(self, skip: torch.Tensor) -> None:
        """Undo the step that just ended if `skip`, a bool scalar on the device, is True."""
        for buffer, value in zip(self.running, self.start, strict=True):
            buffer.copy_(torch.where(skip, value, buffer))
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(skip.long())

    def _set_count(self, steps: int) -> None:
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(steps)
