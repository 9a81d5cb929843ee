"""Settings of a training, shared by the recipes of pre-training and of distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrain.training import distributed
from upstreams.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Batches, optimizers, schedule, precision, and how often the training state is saved."""

    batch_seconds: float = 60.0  # of audio in a step, over all ranks
    micro_batch_seconds: float = 0.0  # of audio that one device computes at once; 0: batch_seconds / world size
    crop_seconds: float = 4.0
    workers: int = 0  # processes of each rank that read audio ahead
    optimizer: str = "muon"  # muon (the blocks' matrices; AdamW the rest) or adamw
    lr: float = 3e-3  # learning rate of AdamW: norms, biases, embeddings, heads
    matrix_lr: float = 1.5e-2  # learning rate of Muon: the blocks' weight matrices
    scale_lr: float = 1e-4  # learning rate of the quantizers' scales and shifts
    weight_decay: float = 0.01
    warm_up: float = 0.1  # fraction of the steps
    decay: str = "linear"  # or cosine; both to 0
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.0  # decay of a moving average of the weights, which becomes the result; 0: no average
    precision: str = "auto"  # float32, bfloat16 (autocast), or auto: bfloat16 on a GPU, float32 elsewhere
    compile: bool = False  # torch.compile the encoder's blocks
    save_every: int = 100  # steps between saved states, from which an interrupted run resumes
    keep: int = 2  # newest states to keep, besides the one of lowest loss
    max_skipped: int = 10  # consecutive steps without a finite gradient, after which training stops

    def check(self, where: str) -> None:
        """Raise UserError if a value is out of range. where: name of the recipe, for the message."""
        for key in ("save_every", "keep", "max_skipped", "batch_seconds", "crop_seconds", "clip"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)} in {where}, but must be more than 0")
        for key, choices in (
            ("optimizer", ("muon", "adamw")),
            ("decay", ("linear", "cosine")),
            ("precision", ("auto", "float32", "bfloat16")),
        ):
            if getattr(self, key) not in choices:
                raise UserError(f"{key} is {getattr(self, key)!r} in {where}, but must be {' or '.join(choices)}")
        if not 0 <= self.micro_batch_seconds <= self.batch_seconds:
            raise UserError(
                f"micro_batch_seconds is {self.micro_batch_seconds:g} in {where}, but must be between 0 and "
                f"batch_seconds ({self.batch_seconds:g})"
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema} in {where}, but must be in [0, 1)")

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in a step, over all ranks."""
        if not self.micro_batch_seconds:
            return distributed.world_size()
        return max(1, round(self.batch_seconds / self.micro_batch_seconds))

    @property
    def seconds_per_micro_batch(self) -> float:
        """Seconds of audio in a micro-batch."""
        return self.batch_seconds / self.micro_batches

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """Return the type in which matrices are multiplied on that device."""
        half = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        return torch.bfloat16 if half else torch.float32
