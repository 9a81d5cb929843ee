"""Run by torchrun: two ranks with one batch each must get the gradients of one process with both batches."""

from __future__ import annotations

import copy
import sys

import torch

from pretrain.audio.data import Batch
from pretrain.distill import DistillationSettings, start_student
from pretrain.objectives.distillation import ModelWithHead, distillation_loss
from pretrain.objectives.hubert import CodewordHead
from pretrain.training import distributed
from upstreams.config import preset
from upstreams.formats.checkpoint import build
from upstreams.quantization.convert import calibrate


def main() -> None:
    """Exit with 0 if the gradients are equal, otherwise with 1 and the names of the parameters that differ."""
    torch.manual_seed(0)
    distributed.initialize()
    teacher = ModelWithHead(build(preset("sparseformer_sw_mini")), CodewordHead(256, 9))
    teacher.double().eval().requires_grad_(False)
    student = start_student(teacher, "w2a2", DistillationSettings())[0].double().eval()
    waveforms = torch.randn(3, 12_000, dtype=torch.float64) * 0.1
    lengths = torch.tensor([12_000, 5_000, 9_000])
    calibrate(student.model, waveforms, lengths)
    alone = copy.deepcopy(student)

    own = slice(0, 1) if distributed.rank() == 0 else slice(1, 3)
    frames = float(student.model.frame_count(lengths).sum())
    loss, _ = distillation_loss(student, teacher, Batch(waveforms[own], lengths[own], torch.zeros(0)), frames)
    loss.backward()
    distributed.all_reduce_gradients(list(student.parameters()))
    assert distributed.any_rank(distributed.rank() == 1) and not distributed.any_rank(False)
    assert distributed.broadcast(f"{distributed.rank()}") == "0"

    loss, _ = distillation_loss(alone, teacher, Batch(waveforms, lengths, torch.zeros(0)))
    loss.backward()
    pairs = zip(student.named_parameters(), alone.parameters(), strict=True)
    wrong = [name for (name, p), q in pairs if p.grad is not None and not torch.allclose(p.grad, q.grad, atol=1e-9)]
    sys.exit(", ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
