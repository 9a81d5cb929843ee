"""A task that trains in milliseconds: regression through batch normalisation and dropout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.training import distributed
from pretrain.training.loop import fit
from pretrain.training.optimizers import build_optimizers
from pretrain.training.settings import TrainingSettings

SETTINGS = TrainingSettings(batch_seconds=4, micro_batch_seconds=1, save_every=5, lr=0.05, matrix_lr=0.05)


@dataclass
class Toy:
    """A task of the training loop. nan_steps: steps whose batches hold NaN."""

    settings: TrainingSettings
    steps: int = 20
    nan_steps: range = range(0)
    module: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        blocks = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 8))
        self.module = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(8, 1)})

    def batches(self, first: int) -> Iterable[Tensor]:
        count = self.settings.micro_batches
        for step in range(first, self.steps):
            for number in distributed.micro_batches_of_rank(count):
                generator = torch.Generator().manual_seed(step * count + number)
                x = torch.randn(5 + number, 4, generator=generator)
                yield x * float("nan") if step in self.nan_steps else x

    def prepare(self, batch: Tensor, number: int) -> tuple[Tensor, Tensor]:
        return batch, torch.tensor([len(batch)], dtype=torch.float64)

    def unreadable(self, batch: Tensor) -> int:
        return 0

    def loss(self, prepared: Tensor, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        guess = self.module["head"](self.module["blocks"](prepared)).squeeze(-1)  # type: ignore[index]
        error = (guess - prepared.sum(1)).square().sum() / float(totals)
        return error, {"error": error}

    def to_device(self, prepared: Tensor) -> Tensor:
        return prepared

    def begin_step(self, logged: bool) -> None:
        pass

    def state_to_log(self) -> dict[str, Tensor]:
        return {}

    def work(self, prepared: Tensor) -> tuple[float, float]:
        return float(len(prepared)), 1.0

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in sums.items()}

    def run(self, folder: Path) -> dict[str, Tensor]:
        """Train and return the weights."""
        blocks = self.module["blocks"]  # type: ignore[index]
        optimizers = build_optimizers(self.module, self.settings, blocks)
        fit(self, optimizers, self.settings, steps=self.steps, folder=folder, seed=3)
        return self.module.state_dict()
