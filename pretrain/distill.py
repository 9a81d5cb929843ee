"""`superbit quantize`: BiT's multi-distillation (arXiv 2205.13016, section 3.4): each student is the next teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.data import Batch, BatchOrder, Crops, loader
from pretrain.hubert import CodewordHead
from pretrain.manifest import Manifest
from pretrain.pretraining import calibration_batches, is_finished
from pretrain.trainer import fit, optimizers
from upstreams import checkpoint
from upstreams.errors import UserError
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrating
from upstreams.quantization.spec import Bits
from upstreams.versions import versions


@dataclass(frozen=True)
class Distillation:
    """What one step of the schedule is trained with."""

    steps: int = 120
    lr: float = 1e-3
    matrix_lr: float = 5e-3
    weight_decay: float = 0.0
    warm_up: float = 0.1
    batch_seconds: float = 60.0
    crop_seconds: float = 4.0


class Student(nn.Module):
    """A quantized model with the teacher's head, compared with its teacher frame by frame."""

    def __init__(self, model: AudioEncoder, head: CodewordHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, teacher: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over hidden states of the mean squared error, plus soft cross-entropy of the codewords' logits.

        The hidden states are mapped as the teacher exports them (standardised, decorrelated), so that layers weigh
        alike and an error of 1 is that of a constant. Padded frames take no part.
        """
        with torch.no_grad():
            wanted = teacher.model(batch.waveforms, batch.lengths)
            target = teacher.head(wanted[-1]).softmax(-1)
        states = self.model(batch.waveforms, batch.lengths)
        frames = self.model.frame_count(batch.lengths)
        valid = ~padding_mask(frames, states[0].shape[1])
        errors = [(ours - theirs)[valid].square().mean() for ours, theirs in zip(states, wanted, strict=True)]
        logits = self.head(states[-1]).log_softmax(-1)
        cross_entropy = -(target * logits).sum(-1)[valid].mean()
        # The teacher's own entropy is no one's fault: what is left is the divergence from the teacher.
        entropy = -(target * target.clamp_min(1e-9).log()).sum(-1)[valid].mean()
        loss = torch.stack(errors).sum() + cross_entropy
        scalars = {
            "loss": loss.detach(),
            "divergence": (cross_entropy - entropy).detach(),
            "hidden_error": torch.stack(errors).mean().detach(),
        }
        scalars |= {f"hidden_error_layer/{k}": error.detach() for k, error in enumerate(errors)}
        return loss, scalars


def quantize_checkpoint(
    teacher_path: Path, schedule: list[str], manifest_path: Path, out: Path, seed: int, settings: Distillation
) -> Path:
    """Distil a checkpoint through `schedule` (such as w1a32, w1a1); return the last one's checkpoint.

    Every step writes OUT/checkpoints/<model>_<bits>.safetensors and is skipped when that is done
    already; a step that was interrupted goes on. Raises UserError when the teacher was not
    pre-trained or bits are invalid.
    """
    for bits in schedule:
        if Bits.parse(bits) == Bits(32, 32):
            raise UserError("w32a32 in a schedule is the teacher itself: name the bits to distil to, such as w1a1")
    if not schedule:
        raise UserError("the schedule names no bits: give at least one, such as w1a1")
    manifest = Manifest.read(manifest_path)
    for bits in schedule:
        teacher_path = _distil(teacher_path, bits, manifest, out, seed, settings)
    return teacher_path


def load_with_head(path: Path) -> Student:
    """A checkpoint's model and pre-training head. Raises UserError when it has no head."""
    config, tensors, _ = checkpoint.read(path)
    model = checkpoint.build(config)
    checkpoint.fill(model, tensors, "model.", path)
    if "head.codewords" not in tensors:
        raise UserError(f"{path} has no pre-training head: distillation needs a checkpoint of `superbit pretrain`")
    codewords, code_dim = tensors["head.codewords"].shape
    head = CodewordHead(config.encoder.dim, codewords, code_dim)
    checkpoint.fill(head, tensors, "head.", path)
    return Student(model, head)


def _distil(teacher_path: Path, bits: str, manifest: Manifest, out: Path, seed: int, settings: Distillation) -> Path:
    """One step of the schedule."""
    teacher = load_with_head(teacher_path).eval().requires_grad_(False)
    name = teacher.model.config.name
    final = out / "checkpoints" / f"{name}_{bits}.safetensors"
    about = {
        "distillation": dataclasses.asdict(settings),
        "bits": bits,
        "seed": seed,
        "teacher_sha256": checkpoint.sha256(teacher_path),
        "manifest": {"utterances": len(manifest), "hours": round(manifest.hours, 4)},
        **versions(),
    }
    if is_finished(final, about, ("distillation", "seed", "teacher_sha256", "manifest")):
        return final

    torch.manual_seed(seed)
    config = dataclasses.replace(teacher.model.config, bits=bits)
    student = Student(checkpoint.build(config), CodewordHead(config.encoder.dim, *teacher.head.codewords.shape))
    state = teacher.state_dict()
    # What the teacher lacks are the scales of quantizers that are new in this step; calibration sets them.
    missing, unexpected = student.load_state_dict(state, strict=False)
    quantizers = ("alpha", "beta", "calibrated")
    if unexpected or any(key.rpartition(".")[2] not in quantizers for key in missing):
        raise UserError(f"{teacher_path} cannot teach {bits}: its modules are not those of the student")
    statistics = calibration_batches(manifest, settings, config.downsample_rate, seed)
    with torch.no_grad(), calibrating(student):
        waveforms, lengths = max(statistics, key=lambda batch: batch[0].shape[1])
        whole = lengths == waveforms.shape[1]
        student.model(waveforms[whole], lengths[whole])

    crops = Crops(manifest, None, config.downsample_rate)
    order = BatchOrder(manifest, config.downsample_rate, settings.batch_seconds, settings.crop_seconds, seed)

    def batches(first: int) -> Iterable[Batch]:
        return loader(crops, order, first, settings.steps)

    def losses(batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return student(teacher, batch)

    student.train()
    fit(
        student,
        optimizers(student, settings.lr, settings.matrix_lr, settings.weight_decay, student.model.encoder.blocks),
        batches,
        losses,
        settings.steps,
        out / "quantize" / f"{name}_{bits}",
        warm_up=settings.warm_up,
        title=f"{name} {bits}",
    )
    student.eval()
    student.model.fit_output(statistics)
    checkpoint.save(final, student.model, student.head, {**about, "stage": "distilled"})
    return final
