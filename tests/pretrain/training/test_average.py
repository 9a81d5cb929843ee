"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretrain.training.average import MovingAverage


def test_the_average_is_that_of_torch_and_leaves_out_skipped_steps() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ours, theirs = MovingAverage(module, 0.9), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(5):
        for parameter in module.parameters():
            parameter.data += torch.randn_like(parameter)
        module(torch.randn(4, 3))
        ours.update(module, torch.tensor(False))
        theirs.update_parameters(module)
        if step == 2:  # the weights are those of the step before: a skipped step changes nothing
            ours.update(module, torch.tensor(True))
    expected = theirs.module.state_dict()
    for name, value in ours.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
