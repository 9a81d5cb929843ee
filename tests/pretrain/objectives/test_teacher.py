"""Prediction of a teacher's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pretrain.objectives.teacher import TeacherFrames, resample_nearest
from upstreams.config import FrontEndConfig
from upstreams.frontend import build_front_end


class Teacher(nn.Module):
    """A front-end with the interface of an s3prl upstream."""

    def __init__(self, config: FrontEndConfig, rate: float) -> None:
        super().__init__()
        self.front_end = build_front_end(config, 8)
        self.rate, self.calls = rate, 0

    def get_downsample_rates(self, key: str) -> float:
        return self.rate

    def forward(self, waveforms: list[Tensor]) -> dict[str, list[Tensor]]:
        self.calls += 1
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        return {"hidden_states": [self.front_end(pad_sequence(waveforms, True), lengths)[0]]}


@pytest.mark.parametrize(
    ("config", "rate", "most_calls"),
    [
        (FrontEndConfig(kind="waveform", normalisation="none", width=8), 320, 15),
        (FrontEndConfig(mels=8), 640, 15),
        (FrontEndConfig(mels=8, stem="convolution", subsampling=2), 320, 15),
        (FrontEndConfig(mels=8), 320, 25),  # the stated rate is wrong: every length is measured
    ],
)
def test_a_teachers_frames_are_its_own_count(config: FrontEndConfig, rate: float, most_calls: int) -> None:
    teacher = Teacher(config, rate)
    count = TeacherFrames(teacher, torch.device("cpu"))
    lengths = torch.tensor([16_000, 15_999, 16_080, 16_400, 31_900, 32_000, 700, 640, 48_001, 399])
    assert count(lengths).tolist() == teacher.front_end.frame_count(lengths).tolist()
    assert teacher.calls <= most_calls
    if config.kind == "waveform":
        assert count(torch.tensor([16_000])).item() == 49


def test_nearest_frames_of_two_frame_rates() -> None:
    states = torch.arange(6.0)[None, :, None]
    assert resample_nearest(states, torch.tensor([3]), torch.tensor([6])).flatten().tolist() == [1, 3, 5]
    assert resample_nearest(states, torch.tensor([12]), torch.tensor([6])).flatten().tolist() == [
        k // 2 for k in range(12)
    ]
