"""Optimizers: the schedule and the parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.training.optimizers import build_optimizers, warm_up_decay
from pretrain.training.settings import TrainingSettings
from tests.pretrain.students import student_and_teacher
from upstreams.quantization.quantizers import SMALLEST_SCALE, Quantizer, WeightQuantizer


def test_learning_rate_warms_up_and_decays() -> None:
    for decay in ("linear", "cosine"):
        factors = [warm_up_decay(step, 100, 0.1, decay) for step in range(100)]
        assert factors[4] == pytest.approx(0.5) and max(factors) == pytest.approx(1.0, abs=1e-3)
        assert factors[55] == pytest.approx(0.5, abs=0.01) and factors[99] < 0.02
        assert factors[10:] == sorted(factors[10:], reverse=True)


def test_scales_have_their_own_learning_rate_and_no_weight_decay() -> None:
    student, _, _ = student_and_teacher("w2a2")
    muon, adam = build_optimizers(
        student, TrainingSettings(lr=1e-3, weight_decay=0.1, scale_lr=2e-5), student.model.encoder.blocks
    )
    others, scales = adam.param_groups
    expected = {id(p) for m in student.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    assert {id(p) for p in scales["params"]} == expected
    assert (scales["lr"], scales["weight_decay"], others["weight_decay"]) == (2e-5, 0.0, 0.1)
    weight = student.model.encoder.blocks[0].attention.query.weight
    assert any(weight is p for p in muon.param_groups[0]["params"])
    everything = [*muon.param_groups[0]["params"], *others["params"], *scales["params"]]
    assert len(everything) == len({id(p) for p in everything}) == len(list(student.parameters()))


def test_a_scale_that_an_optimizer_step_would_carry_below_zero_still_learns() -> None:
    """8-bit weights have scales near 0.002; a step of 3e-3 is larger than they are."""
    torch.manual_seed(0)
    weight = torch.randn(128, 64) * 0.05
    quantizer = WeightQuantizer(weight.shape, 8, per_channel=True)
    quantizer.calibrate(weight)
    settings = TrainingSettings(optimizer="adamw", scale_lr=3e-3)
    (adam,) = build_optimizers(quantizer, settings, nn.Module())
    smallest = 1.0
    for _ in range(60):
        adam.zero_grad()
        (quantizer(weight) - weight).square().sum().backward()
        assert bool((quantizer.alpha.grad != 0).all())
        adam.step()
        smallest = min(smallest, float(quantizer.alpha.detach().min()))
    assert smallest == pytest.approx(SMALLEST_SCALE), "the steps are too small to show anything"
    assert float(quantizer.alpha.detach().min()) >= SMALLEST_SCALE * (1 - 1e-6)
