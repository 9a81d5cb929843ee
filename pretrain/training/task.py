"""What the training loop trains: the interface of a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """What the loop trains. Losses and logged values are sums over micro-batches and ranks.

    Between `begin_step` and the update nothing may look at a value on the device: the host would wait for it.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained."""

    def batches(self, first: int) -> Iterable[Any]:
        """Return this rank's micro-batches, from step `first` on."""

    def prepare(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        """Prepare global micro-batch `number`; also return its item counts (a vector) for normalisation.

        Both are on the CPU. It may be called before the previous step is finished. All counts are 0 if none of its
        files could be read: such a micro-batch contributes nothing to the step.
        """

    def unreadable(self, batch: Any) -> int:
        """Return how many files of the micro-batch could not be read."""

    def work(self, prepared: Any) -> tuple[float, float]:
        """Return the seconds of audio in the micro-batch and the FLOPs of training on them."""

    def to_device(self, prepared: Any) -> Any:
        """Return a prepared micro-batch on the module's device, where it may still be on its way."""

    def begin_step(self, logged: bool) -> None:
        """Begin a step, before the losses of its micro-batches. logged: its values are logged."""

    def loss(self, prepared: Any, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the loss and of the logged sums. totals: item counts of the whole step."""

    def state_to_log(self) -> dict[str, Tensor]:
        """Return values of the module itself, the same on all ranks, to log beside a step's sums."""

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return what to log of a step, from the sums of what `loss` returned, on the CPU."""
