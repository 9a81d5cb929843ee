"""Muon against torch.optim.Muon, which computes the same update in bfloat16."""

from __future__ import annotations

import pytest
import torch

from pretrain.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 32, 128), (1, 128, 32), (1, 2, 5)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    wanted = left @ right
    # In the basis of the singular vectors the result is diagonal, with entries near one.
    diagonal = left.mT @ result @ right.mT
    well_conditioned = values > 0.1 * values[:, :1]
    entries = torch.diagonal(diagonal, dim1=-2, dim2=-1)[well_conditioned]
    assert entries.min() > 0.6 and entries.max() < 1.3
    torch.testing.assert_close(
        diagonal - torch.diag_embed(torch.diagonal(diagonal, dim1=-2, dim2=-1)),
        torch.zeros_like(diagonal),
        atol=1e-3,
        rtol=0,
    )
    assert torch.nn.functional.cosine_similarity(result.flatten(), wanted.flatten(), dim=0) > 0.95


def test_steps_equal_those_of_torch_up_to_rounding() -> None:
    torch.manual_seed(1)
    start = [torch.randn(24, 16), torch.randn(24, 16), torch.randn(8, 40)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        torch.manual_seed(step)
        gradients = [torch.randn_like(p) for p in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for mine, reference, first in zip(ours, theirs, start, strict=True):
        moved, expected = (mine - first).detach().flatten(), (reference - first).detach().flatten()
        assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > 0.999
        assert abs(float(moved.norm() / expected.norm()) - 1) < 0.01


def test_a_step_without_finite_gradients_changes_nothing() -> None:
    """`found_inf` is 1 where a gradient is NaN, as in torch's fused optimizers."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    optimizer = Muon(weights, lr=0.1)
    before: list[torch.Tensor] = []
    for step in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        weights[1].grad = weights[1] * float("nan") if step == 1 else weights[1].grad
        optimizer.found_inf = torch.tensor(float(step == 1))  # type: ignore[attr-defined]
        optimizer.step()
        momenta = [optimizer.state[weight]["momentum_buffer"] for weight in weights]
        now = [tensor.detach().clone() for tensor in (*weights, *momenta)]
        assert step == 0 or all(torch.equal(a, b) == (step == 1) for a, b in zip(now, before, strict=True))
        before = now
