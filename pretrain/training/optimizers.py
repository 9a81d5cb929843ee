"""Optimizers of a training, the schedule of their learning rates, and compilation of the encoder's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.training.muon import Muon
from pretrain.training.settings import TrainingSettings
from upstreams.quantization.quantizers import Quantizer, keep_positive


def build_optimizers(
    module: nn.Module, settings: TrainingSettings, matrix_parent: nn.Module
) -> list[torch.optim.Optimizer]:
    """Return [Muon, AdamW], or [AdamW] alone if the settings say so or `matrix_parent` holds no matrix.

    Muon trains the weight matrices inside `matrix_parent`; its learning rate `matrix_lr` is in units of AdamW's update
    size. AdamW trains vectors, embeddings and heads, as Muon's author advises. The quantizers' scales and shifts have
    their own learning rate `scale_lr` and no weight decay, as in BiT. After every step of AdamW a scale below the
    smallest one is set to it: below it the gradient would be 0 for ever.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    quantizers = [m for m in module.modules() if isinstance(m, Quantizer)]
    scales = {id(p): p for m in quantizers for p in m.parameters()}
    matrices: dict[int, Tensor] = {}
    if settings.optimizer == "muon":
        inside = {id(p) for p in matrix_parent.parameters()}
        matrices = {id(p): p for p in trained if id(p) in inside and p.ndim == 2 and min(p.shape) > 1}
    others = [p for p in trained if id(p) not in matrices | scales]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": settings.weight_decay}]
    if scales:
        groups.append({"params": list(scales.values()), "lr": settings.scale_lr, "weight_decay": 0.0})
    adam = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    adam.register_step_post_hook(lambda *_: keep_positive(quantizers))
    if not matrices:
        return [adam]
    return [Muon(matrices.values(), lr=settings.matrix_lr, weight_decay=settings.weight_decay), adam]


class LearningRates:
    """Scale the learning rates of all parameter groups by the schedule, relative to their initial values.

    initial: learning rate of each group of each optimizer.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], settings: TrainingSettings, steps: int) -> None:
        self.optimizers, self.settings, self.steps = optimizers, settings, steps
        self.initial: list[list[float]] = [[group["lr"] for group in o.param_groups] for o in optimizers]

    def set(self, step: int) -> None:
        """Set the learning rates of this step."""
        for optimizer, rates in zip(self.optimizers, self.initial, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._factor(step)

    def first(self, step: int) -> float:
        """Return the learning rate of the first group at this step, for the log."""
        return self.initial[0][0] * self._factor(step)

    def _factor(self, step: int) -> float:
        return warm_up_decay(step, self.steps, self.settings.warm_up, self.settings.decay)


def warm_up_decay(step: int, steps: int, warm_up: float, decay: str = "linear") -> float:
    """Return the factor of the learning rate: linear warm-up over the fraction `warm_up` of the steps, then decay to 0.

    decay: linear or cosine.
    """
    rising = max(1, int(steps * warm_up))
    left = (steps - step) / max(1, steps - rising)
    if decay == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left))
    return min((step + 1) / rising, left)


def compile_blocks(blocks: Iterable[nn.Module], settings: TrainingSettings) -> None:
    """Apply torch.compile to an encoder's blocks, once for batches of any shape, if the settings ask for it."""
    if settings.compile:
        for block in blocks:
            block.compile(dynamic=True)
