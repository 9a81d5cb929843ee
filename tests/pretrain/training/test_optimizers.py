"""Optimizers: the schedule and the parameter groups."""

from __future__ import annotations

import pytest

from pretrain.training.optimizers import build_optimizers, warm_up_decay
from pretrain.training.settings import TrainingSettings
from tests.pretrain.students import student_and_teacher
from upstreams.quantization.quantizers import Quantizer


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
