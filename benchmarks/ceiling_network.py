"""A small convolution network as an upstream of s3prl, to be trained with the labels of a task.

Importing this module puts the upstream `supervised_convolutions` into s3prl's hub. It shows what a corpus can teach a
network of this size; it is no baseline of pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.frontend import LogMel, padding_mask
from upstreams.s3prl import compat  # noqa: F401  (makes s3prl importable)

# isort: split
import s3prl.hub

NAME = "supervised_convolutions"
CHANNELS = 144
_STRIDES = (2, 2, 1, 1)
_HOP = 640  # samples of a frame of the last layer
# Log-mel energies of speech at usual levels have about this mean and standard deviation.
_MEAN, _STD = -4.0, 4.0
_MASKED_MELS, _MASKED_SHARE = 12, 0.1  # widest masks in training


class SupervisedConvolutions(nn.Module):
    """Log-mel frames -> four convolutions with batch normalisation -> frames of 40 ms, (batch, frames, 144).

    In training, one band of mels and one span of frames of each utterance are masked, as in SpecAugment.
    """

    def __init__(self, mels: int = 80) -> None:
        super().__init__()
        self.log_mel = LogMel(mels)
        widths = (mels, *(CHANNELS for _ in _STRIDES))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 5, stride, padding=2)
            for before, after, stride in zip(widths, widths[1:], _STRIDES, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in _STRIDES)

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples per frame."""
        return _HOP

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """List of (samples,) waveforms at 16 kHz -> {"hidden_states": [(batch, frames, 144)]}."""
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        with torch.no_grad():
            x, frames = self.log_mel(nn.utils.rnn.pad_sequence(list(wavs), batch_first=True), lengths)
            x = ((x - _MEAN) / _STD).transpose(1, 2)
            x = x.masked_fill(padding_mask(frames, x.shape[2])[:, None], 0.0)
            if self.training:
                x = _masked(x)
        for convolution, norm, stride in zip(self.convolutions, self.norms, _STRIDES, strict=True):
            x = torch.relu(norm(convolution(x)))
            frames = -(-frames // stride)
            x = x.masked_fill(padding_mask(frames, x.shape[2])[:, None], 0.0)
        return {"hidden_states": [x.transpose(1, 2)]}


def _masked(x: Tensor) -> Tensor:
    """Return (batch, mels, frames) with one random band and one random span of each utterance set to 0."""
    for dim, widest in ((1, _MASKED_MELS), (2, round(_MASKED_SHARE * x.shape[2]))):
        width = torch.randint(0, widest + 1, (len(x), 1))
        start = (torch.rand(len(x), 1) * (x.shape[dim] - width)).long()
        position = torch.arange(x.shape[dim])
        hidden = ((position >= start) & (position < start + width)).to(x.device)
        x = x.masked_fill(hidden.unsqueeze(3 - dim), 0.0)
    return x


def _upstream(*args: Any, **kwargs: Any) -> SupervisedConvolutions:
    return SupervisedConvolutions()


setattr(s3prl.hub, NAME, _upstream)
