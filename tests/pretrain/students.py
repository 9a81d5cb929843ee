"""A quantized student and its float teacher, of the smallest preset."""

from __future__ import annotations

import torch

from pretrain.audio.data import Batch
from pretrain.distill import DistillationSettings, start_student
from pretrain.objectives.distillation import ModelWithHead
from pretrain.objectives.hubert import CodewordHead
from upstreams.config import preset
from upstreams.formats.checkpoint import build
from upstreams.quantization.convert import calibrate


def student_and_teacher(bits: str) -> tuple[ModelWithHead, ModelWithHead, Batch]:
    """Return both, and a batch with padding."""
    torch.manual_seed(0)
    head = CodewordHead(256, 9)
    teacher = ModelWithHead(build(preset("sparseformer_sw_mini")), head).eval().requires_grad_(False)
    student, _ = start_student(teacher, bits, DistillationSettings())
    waveforms, lengths = torch.randn(2, 12_000) * 0.1, torch.tensor([12_000, 7_000])
    calibrate(student.model, waveforms, lengths)
    return student, teacher, Batch(waveforms, lengths, torch.zeros(0))
