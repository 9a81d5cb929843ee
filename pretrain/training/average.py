"""A moving average of a module's weights, which becomes the result of a training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """`module` is a copy whose parameters are averaged over the steps, with `decay`; its buffers are the latest.

    torch.optim.swa_utils.AveragedModel copies its count to the device in every step, which the host waits for.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module)
        self.decay = decay
        self.started = False

    @torch.no_grad()
    def update(self, module: nn.Module, skip: Tensor) -> None:
        """Average with the weights of `module`, or change nothing if `skip` (a bool scalar on the device) is True."""
        average: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(module.parameters())
        if self.started:
            change = torch._foreach_sub(current, average)
            torch._foreach_mul_(change, (1 - self.decay) * (~skip).float())
            torch._foreach_add_(average, change)
        else:
            torch._foreach_copy_(average, current)
        for own, latest in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(latest)
        self.started = True

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state dictionary of an average's module."""
        self.module.load_state_dict(tensors)
        self.started = True
