"""What the training tasks share: micro-batches of a manifest's audio, what they cost, and the call of the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch, BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.training import distributed
from pretrain.training.loop import fit
from pretrain.training.optimizers import build_optimizers, compile_blocks
from pretrain.training.settings import TrainingSettings
from pretrain.training.throughput import step_flops
from upstreams.config import SAMPLE_RATE
from upstreams.model import AudioEncoder


class AudioBatch(Protocol):
    """A batch that knows the lengths of its utterances, (batch,) in samples."""

    @property
    def lengths(self) -> Tensor:
        """Lengths in samples."""

    def to(self, device: torch.device) -> Any:
        """Return the batch on another device."""


Prepared = TypeVar("Prepared", bound=AudioBatch)


class AudioTask(ABC, Generic[Prepared]):
    """A task of the training loop over crops of a manifest; subclasses say what is predicted.

    module: what is trained, around the encoder `model`. labels: of each utterance, None if the task needs none. views:
    crops of an utterance in a batch.
    """

    def __init__(
        self,
        module: nn.Module,
        model: AudioEncoder,
        settings: TrainingSettings,
        manifest: Manifest,
        *,
        steps: int,
        seed: int,
        labels: Sequence[np.ndarray] | None = None,
        views: int = 1,
    ) -> None:
        self.module, self.model, self.settings, self.steps, self.seed = module, model, settings, steps, seed
        self.hop = model.config.downsample_rate
        self.crops = Crops(manifest, labels, self.hop)
        seconds, crop_seconds = settings.seconds_per_micro_batch, settings.crop_seconds
        self.order = BatchOrder(manifest, self.hop, seconds, crop_seconds, seed, views)
        self.logged = True  # whether the values of the present step are logged
        self.flops = step_flops(model, int(crop_seconds * SAMPLE_RATE))
        model.encoder.checkpointing = settings.checkpointing
        compile_blocks(model.encoder.blocks, settings)

    @property
    def device(self) -> torch.device:
        """The device of the module."""
        return next(self.module.parameters()).device

    def batches(self, first: int) -> Iterable[Batch]:
        """Return this rank's micro-batches, from step `first` on."""
        count = self.settings.micro_batches
        share = distributed.micro_batches_of_rank(count)
        return loader(
            self.crops,
            self.order,
            first,
            self.steps,
            micro_batches=count,
            share=share,
            workers=self.settings.workers,
        )

    def begin_step(self, logged: bool) -> None:
        """Begin a step, before the losses of its micro-batches. logged: its values are logged."""
        self.logged = logged

    @abstractmethod
    def prepare(self, batch: Batch, number: int) -> tuple[Prepared, Tensor]:
        """Prepare global micro-batch `number`; also return its item counts (a vector) for normalisation."""

    @abstractmethod
    def loss(self, prepared: Prepared, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the loss and of the logged sums. totals: item counts of the whole step."""

    def to_device(self, prepared: Prepared) -> Prepared:
        """Return a prepared micro-batch on the module's device, where it may still be on its way."""
        return prepared.to(self.device)

    def state_to_log(self) -> dict[str, Tensor]:
        """Return values of the module itself to log beside a step's sums; by default none."""
        return {}

    def work(self, prepared: Prepared) -> tuple[float, float]:
        """Return the seconds of audio and the FLOPs of training the model on them; a teacher's are not counted."""
        lengths = prepared.lengths.tolist()
        return sum(lengths) / SAMPLE_RATE, self.flops(lengths)

    def unreadable(self, batch: Batch) -> int:
        """Return how many files of the micro-batch could not be read."""
        return batch.skipped

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return the logged sums as numbers."""
        return {name: float(total) for name, total in sums.items()}

    def frame_total(self, batch: Batch) -> Tensor:
        """Return the number of frames in the batch, (1,), for tasks whose means are over all frames."""
        return self.model.frame_count(batch.lengths).sum().double()[None]

    def train(
        self, folder: Path, *, title: str, validate: Callable[[nn.Module], dict[str, float]] | None = None
    ) -> None:
        """Train the module in `folder`, or resume there; see `fit`."""
        optimizers = build_optimizers(self.module, self.settings, self.model.encoder.blocks)
        fit(
            self,
            optimizers,
            self.settings,
            steps=self.steps,
            folder=folder,
            seed=self.seed,
            title=title,
            validate=validate,
        )
