"""Distillation of a model into the same architecture in other bit widths (BiT, arXiv 2205.13016)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import CodewordHead, LinearHead, build_head
from pretrain.objectives.task import AudioTask
from pretrain.training.monitor import SignFlips, scales
from pretrain.training.settings import TrainingSettings
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder, without_values


class ModelWithHead(nn.Module):
    """An encoder with its pre-training head: the teacher as well as the student."""

    def __init__(self, model: AudioEncoder, head: CodewordHead | LinearHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the exported hidden states, each (batch, frames, dim), and the logits (batch, frames, codewords)."""
        states = self.model.hidden_states(waveforms, lengths)
        return list(states), self.head(states[-1])


def load_with_head(path: Path) -> ModelWithHead:
    """Return a checkpoint's model and pre-training head. Raises UserError if it has no head."""
    config, tensors, _ = checkpoint.read(path)
    model, dim = checkpoint.skeleton(config), config.encoder.dim
    checkpoint.fill(model, tensors, "model.", path)
    cosine, linear = tensors.get("head.codewords"), tensors.get("head.weight")
    with without_values():
        if cosine is not None and cosine.ndim == 2:
            head = build_head("cosine", dim, *cosine.shape)
        elif linear is not None and linear.ndim == 2:
            head = build_head("linear", dim, len(linear))
        else:
            raise UserError(f"{path} has no pre-training head: distillation needs a checkpoint of `superbit pretrain`")
    checkpoint.fill(head, tensors, "head.", path)
    return ModelWithHead(model, head)


def distillation_loss(
    student: ModelWithHead, teacher: ModelWithHead, batch: Batch, total: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the batch, normalised by `total` frames (its own if None), and the values to log.

    The loss is the sum over hidden states of the mean squared error, plus the soft cross-entropy of the codewords. The
    hidden states are compared as exported (standardised, decorrelated): layers have equal weight, and a constant
    output has an error of 1. Padded frames are excluded. The losses of micro-batches with a common total add up.
    """
    with torch.no_grad():
        teacher_states, teacher_logits = teacher(batch.waveforms, batch.lengths)
        target = teacher_logits.softmax(-1)
    states, logits = student(batch.waveforms, batch.lengths)
    frames = student.model.frame_count(batch.lengths)
    padded = padding_mask(frames, states[0].shape[1])
    count = frames.sum() if total is None else total
    # Hidden states are zero where padded.
    errors = [
        (ours - theirs).square().sum() / (count * ours.shape[2])
        for ours, theirs in zip(states, teacher_states, strict=True)
    ]
    cross_entropy = -(target * logits.log_softmax(-1)).sum(-1).masked_fill(padded, 0.0).sum() / count
    # The cross-entropy minus the teacher's own entropy is the divergence from the teacher.
    entropy = -(target * target.clamp_min(1e-9).log()).sum(-1).masked_fill(padded, 0.0).sum() / count
    loss = torch.stack(errors).sum() + cross_entropy
    values = {
        "divergence": (cross_entropy - entropy).detach(),
        "hidden_error": torch.stack(errors).mean().detach(),
    }
    return loss, values | {f"hidden_error_layer/{k}": error.detach() for k, error in enumerate(errors)}


class DistillationTask(AudioTask[Batch]):
    """Training of a quantized student against its frozen teacher."""

    module: ModelWithHead

    def __init__(
        self,
        student: ModelWithHead,
        teacher: ModelWithHead,
        settings: TrainingSettings,
        manifest: Manifest,
        *,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__(student, student.model, settings, manifest, steps=steps, seed=seed)
        self.teacher = teacher
        self.count_sign_flips = SignFlips(student.model)
        self.sign_flips: dict[str, Tensor] = {}

    def begin_step(self, logged: bool) -> None:
        """Count the sign flips of the previous step's update."""
        super().begin_step(logged)
        self.sign_flips = self.count_sign_flips()

    def prepare(self, batch: Batch, number: int) -> tuple[Batch, Tensor]:
        """Return the batch and its number of frames."""
        return batch, self.frame_total(batch)

    def loss(self, prepared: Batch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the step's loss."""
        return distillation_loss(self.module, self.teacher, prepared, float(totals[0]))

    def state_to_log(self) -> dict[str, Tensor]:
        """Return the quantizers' scales, and the sign flips of the previous step."""
        return scales(self.model) | self.sign_flips
