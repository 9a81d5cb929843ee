"""The distillation loss: padding, and gradients in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.objectives.distillation import distillation_loss
from tests.pretrain.students import student_and_teacher


def test_padding_does_not_change_the_loss_or_its_gradients() -> None:
    student, teacher, batch = student_and_teacher("w2a2")
    student.double(), teacher.double()
    wide = torch.nn.functional.pad(batch.waveforms.double(), (0, 9_000), value=0.4)
    results = []
    for waveforms in (batch.waveforms.double(), wide):
        student.zero_grad()
        loss, _ = distillation_loss(student, teacher, replace(batch, waveforms=waveforms))
        loss.backward()
        results.append([loss, *(p.grad for p in student.parameters() if p.grad is not None)])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("bits", ["w1a1", "w2a4", "w8a8"])
def test_gradients_of_a_bfloat16_step_are_float32(bits: str) -> None:
    """As on a GPU: the loss is close to that in float32, and gradients of weights and scales are float32."""
    student, teacher, batch = student_and_teacher(bits)
    exact, _ = distillation_loss(student, teacher, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = distillation_loss(student, teacher, batch)
    loss.backward()
    assert float((loss - exact).detach().abs()) < 0.3 * float(exact.detach())
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(gradients) > 40
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)
