"""Settings of a training, shared by the recipes of pre-training and of distillation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    precision: str = "auto"  # float32, bfloat16 (autocast), or auto: bfloat16 on a GPU that has it
    compile: bool = False  # torch.compile the encoder's blocks
    checkpointing: bool = False  # keep only the blocks' inputs for the backward pass: less memory, a third more time
    save_every: int = 100  # steps between saved states, from which an interrupted run resumes
    save_minutes: float = 0.0  # also save a state after so many minutes without one; 0: by steps alone
    keep: int = 2  # newest states to keep
    max_skipped: int = 10  # consecutive steps without audio or a finite gradient, after which training stops

    def check(self, where: str) -> None:
        """Raise UserError if a value is out of range. where: name of the recipe, for the message."""
        check_ranges(vars(self), RANGES, where)
        for key, choices in (
            ("optimizer", ("muon", "adamw")),
            ("decay", ("linear", "cosine")),
            ("precision", ("auto", "float32", "bfloat16")),
        ):
            if getattr(self, key) not in choices:
                raise UserError(f"{key} is {getattr(self, key)!r} in {where}, but must be {' or '.join(choices)}")
        if self.micro_batch_seconds > self.batch_seconds:
            raise UserError(
                f"micro_batch_seconds is {self.micro_batch_seconds:g} in {where}, but must be between 0 and "
                f"batch_seconds ({self.batch_seconds:g})"
            )
        self.check_crops(1, where)

    def check_crops(self, views: int, where: str) -> None:
        """Raise UserError if a micro-batch cannot hold the crops of one utterance. views: their number."""
        key = "micro_batch_seconds" if self.micro_batch_seconds else "batch_seconds"
        if getattr(self, key) < views * self.crop_seconds:
            crops = f"{views} crops" if views > 1 else "a crop"
            raise UserError(
                f"{key} is {getattr(self, key):g} in {where}, but must hold {crops} of crop_seconds "
                f"({self.crop_seconds:g}): raise it, or lower crop_seconds"
            )

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in a step, over all ranks."""
        if not self.micro_batch_seconds:
            return distributed.world_size()
        # The tolerance is for a length that is the quotient of the batch and a whole number.
        return max(1, math.ceil(self.batch_seconds / self.micro_batch_seconds - 1e-6))

    @property
    def seconds_per_micro_batch(self) -> float:
        """Seconds of audio in a micro-batch, at most `micro_batch_seconds`."""
        return self.batch_seconds / self.micro_batches

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """Return the type in which matrices are multiplied on that device."""
        half = self.precision == "bfloat16"
        if self.precision == "auto" and device.type == "cuda":
            half = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have."""

    low: float
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{self.low:g} or more" if self.low_included else f"more than {self.low:g}"
        return f"in {'[' if self.low_included else '('}{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"


POSITIVE, NOT_NEGATIVE = Range(0, low_included=False), Range(0)
AT_LEAST_ONE, FRACTION = Range(1), Range(0, 1, high_included=False)
RANGES = {
    **dict.fromkeys(("batch_seconds", "crop_seconds", "lr", "matrix_lr", "clip"), POSITIVE),
    **dict.fromkeys(("micro_batch_seconds", "workers", "scale_lr", "weight_decay", "save_minutes"), NOT_NEGATIVE),
    **dict.fromkeys(("save_every", "keep", "max_skipped"), AT_LEAST_ONE),
    **dict.fromkeys(("warm_up", "ema"), FRACTION),
}


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], where: str, prefix: str = "") -> None:
    """Raise UserError that names the first value out of its range. prefix: of its key, such as "objective."."""
    for key, allowed in ranges.items():
        if values[key] not in allowed:
            raise UserError(f"{prefix}{key} is {values[key]} in {where}, but must be {allowed}")
