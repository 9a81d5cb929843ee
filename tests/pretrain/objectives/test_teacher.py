"""Prediction of a teacher's layers."""

from __future__ import annotations

import torch

from pretrain.objectives.teacher import resample_nearest


def test_nearest_frames_of_two_frame_rates() -> None:
    states = torch.arange(6.0)[None, :, None]
    assert resample_nearest(states, torch.tensor([3]), torch.tensor([6])).flatten().tolist() == [1, 3, 5]
    assert resample_nearest(states, torch.tensor([12]), torch.tensor([6])).flatten().tolist() == [
        k // 2 for k in range(12)
    ]
