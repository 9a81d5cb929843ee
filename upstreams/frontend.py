"""Waveform -> frames for the encoder: log-mel spectrogram, dataset-level normalisation, strided convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WINDOW = 400  # samples: 25 ms at 16 kHz
HOP = 160  # samples: 10 ms
FFT = 512


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """(batch,) lengths -> (batch, longest) bool, True where padded."""
    return torch.arange(longest, device=lengths.device) >= lengths[:, None]


def mel_filters(mels: int, sample_rate: int = 16_000, low: float = 20.0) -> Tensor:
    """Triangular filters on the HTK mel scale, (FFT // 2 + 1, mels), as Kaldi places them (20 Hz to Nyquist)."""

    def to_mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    edges = torch.linspace(float(to_mel(torch.tensor(low))), float(to_mel(torch.tensor(sample_rate / 2))), mels + 2)
    bins = to_mel(torch.arange(FFT // 2 + 1) * sample_rate / FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0)


class LogMel(nn.Module):
    """Log-mel energies at 100 Hz, normalised by statistics of the data set that the checkpoint carries.

    One frame for every 10 ms begun; the last windows reach past the end, where every utterance is followed by zeros.
    """

    window: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, mels: int = 80) -> None:
        super().__init__()
        self.mels = mels
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("filters", mel_filters(mels), persistent=False)
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("std", torch.ones(mels))

    @staticmethod
    def frame_count(samples: Tensor) -> Tensor:
        """Frames of utterances of that many samples (any shape of integers)."""
        return -(-samples // HOP)

    def raw(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, mels), natural logarithm, not normalised."""
        waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % HOP + WINDOW - HOP))
        frames = waveforms.unfold(1, WINDOW, HOP)
        spectrum = torch.fft.rfft(frames * self.window, FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        # The floor lies below 16-bit audio's own quantization noise (about 1e-7 a bin), so digital silence is finite.
        return torch.log(power @ self.filters + 1e-6)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) samples -> (batch, frames, mels), zero where padded; (batch,) frames."""
        features = (self.raw(waveforms) - self.mean) / self.std
        frames = self.frame_count(lengths)
        return features.masked_fill(padding_mask(frames, features.shape[1])[..., None], 0.0), frames


class LogMelFrontEnd(nn.Module):
    """Log-mel and one convolution whose kernel is its stride: `subsampling` stacked 10 ms frames -> `dim`.

    Stacking as MelHuBERT (arXiv 2211.09944) does; the last group of an utterance is filled with zeros.
    """

    def __init__(self, mels: int, subsampling: int, dim: int) -> None:
        super().__init__()
        self.log_mel = LogMel(mels)
        self.subsampling = subsampling
        self.projection = nn.Linear(mels * subsampling, dim)
        nn.init.normal_(self.projection.weight, std=1 / math.sqrt(mels * subsampling))
        self.norm = nn.LayerNorm(dim)

    def frame_count(self, samples: Tensor) -> Tensor:
        """Encoder frames of utterances of that many samples."""
        return -(-LogMel.frame_count(samples) // self.subsampling)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) samples -> (batch, frames, dim), (batch,) frames."""
        features, _ = self.log_mel(waveforms, lengths)
        features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % self.subsampling))
        stacked = features.unflatten(1, (-1, self.subsampling)).flatten(2)
        return self.norm(self.projection(stacked)), self.frame_count(lengths)
