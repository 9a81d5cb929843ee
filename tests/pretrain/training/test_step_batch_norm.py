"""Running statistics of batch normalisation over the micro-batches of a step."""

from __future__ import annotations

import torch
from torch import nn

from pretrain.training.step_batch_norm import StepBatchNorm


def run_step(module: nn.BatchNorm1d, batch_norm: StepBatchNorm, micro_batches: list[torch.Tensor], step: int) -> None:
    batch_norm.begin_step()
    for x in micro_batches:
        batch_norm.begin_micro_batch()
        module(x)
        batch_norm.end_micro_batch()
    batch_norm.end_step(step)


def test_running_statistics_are_the_mean_over_micro_batches() -> None:
    torch.manual_seed(0)
    micro_batches = [torch.randn(5, 3) + k for k in range(4)]
    module = nn.BatchNorm1d(3)
    run_step(module, StepBatchNorm(module, 4), micro_batches, step=0)
    momentum = 0.1
    expected = momentum * torch.stack([x.mean(0) for x in micro_batches]).mean(0)
    torch.testing.assert_close(module.running_mean, expected)
    expected = 1 - momentum + momentum * torch.stack([x.var(0) for x in micro_batches]).mean(0)
    torch.testing.assert_close(module.running_var, expected)
    assert int(module.num_batches_tracked) == 1


def test_the_order_of_micro_batches_does_not_matter() -> None:
    torch.manual_seed(0)
    micro_batches = [torch.randn(5, 3) + k for k in range(3)]
    means = []
    for order in ((0, 1, 2), (2, 0, 1)):
        module = nn.BatchNorm1d(3)
        run_step(module, StepBatchNorm(module, 3), [micro_batches[k] for k in order], step=0)
        means.append(module.running_mean)
    torch.testing.assert_close(means[0], means[1])


def test_an_undone_step_leaves_no_trace() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    batch_norm = StepBatchNorm(module, 2)
    run_step(module, batch_norm, [torch.randn(5, 3), torch.randn(5, 3)], step=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run_step(module, batch_norm, [torch.full((5, 3), float("nan"))] * 2, step=1)
    batch_norm.undo_step(step=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
