"""The log-mel front-end in numpy, for whole utterances and for parts of one. Imports no torch.

Every frame is computed in the same way whatever its neighbours, so that a part equals the whole to the last bit.
"""

from __future__ import annotations

import numpy as np

from upstreams.config import FFT, HOP, WINDOW, ModelConfig
from upstreams.packed.kernels import Floats, Native, in_float_blocks, padded_to_block
from upstreams.packed.linear import FloatLinear
from upstreams.packed.tensors import Tensors


class LogMel:
    """Log-mel energies at 100 Hz, normalised by statistics of the data set or of the utterance."""

    def __init__(self, tensors: Tensors, mels: int, utterance: bool) -> None:
        self.window = tensors.take("front_end.log_mel.window", WINDOW)
        filters = tensors.take("front_end.log_mel.filters", FFT // 2 + 1, mels)
        self.filters = FloatLinear(filters.T, np.zeros(mels, np.float32))
        self.mean = tensors.take("front_end.log_mel.mean", mels)
        self.std = tensors.take("front_end.log_mel.std", mels)
        self.utterance = utterance

    def __call__(self, samples: Floats, frames: int, kernel: Native) -> Floats:
        """The first `frames` frames of samples, which are followed by zeros, -> (frames, mels)."""
        needed = max(0, (frames - 1) * HOP + WINDOW)
        padded = np.zeros(needed, np.float32)
        padded[: min(needed, len(samples))] = samples[:needed]
        windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        features = np.empty((frames, len(self.mean)), np.float32)
        for first in range(0, frames, 128):  # spectra of a minute are large
            spectrum = np.fft.rfft(windows[first : first + 128] * self.window, FFT)
            power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
            features[first : first + 128] = np.log(self.filters(power, kernel) + np.float32(1e-6))
        mean, std = self.mean, self.std
        if self.utterance:
            mean, std = features.mean(0), np.sqrt(features.var(0) + np.float32(1e-5))
        return (features - mean) / std


class StackingStem:
    """`subsampling` frames side by side; an utterance ends in zeros."""

    before, after = 0, 0  # frames of the output, and of the input, that a frame of the output sees beside its own

    def __init__(self, mels: int, subsampling: int) -> None:
        self.subsampling, self.dim = subsampling, mels * subsampling

    def __call__(self, features: Floats, kernel: Native) -> Floats:
        """(frames, mels) -> (ceil(frames / subsampling), dim)."""
        missing = -len(features) % self.subsampling
        return np.pad(features, ((0, missing), (0, 0))).reshape(-1, self.dim)


class ConvolutionStem:
    """Two 3 x 3 convolutions over time and frequency, the second one depthwise separable, channels last."""

    after = 3

    def __init__(self, tensors: Tensors, mels: int, subsampling: int, width: int) -> None:
        self.subsampling, self.width = subsampling, width
        self.before = 1 if subsampling == 4 else 2
        self.dim = width * -(-mels // 4)
        name = "front_end.stem"
        first, bias, self.quantize_first = tensors.convolution(f"{name}.first", width, 1, 3, 3)
        self.first = FloatLinear(first.reshape(width, 9), bias)
        depthwise, self.bias, self.quantize_depthwise = tensors.convolution(
            f"{name}.depthwise", width, 1, 3, 3, groups=width
        )
        bins = -(-mels // 4)
        nothing = np.zeros(bins * width, np.float32)
        # (frames, channels) of each of the three bins that a filter sees
        self.columns = [(np.tile(depthwise[:, 0, :, column].T, (1, bins)), nothing) for column in range(3)]
        pointwise, bias, self.quantize_pointwise = tensors.convolution(f"{name}.pointwise", width, width, 1, 1)
        self.pointwise, self.pointwise_bias = in_float_blocks(pointwise.reshape(width, width)), padded_to_block(bias)

    def __call__(self, features: Floats, kernel: Native) -> Floats:
        """(frames, mels) -> (ceil(frames / subsampling), bins * width)."""
        padded = np.pad(self.quantize_first(features[..., None])[..., 0], 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
        x = self.first(np.ascontiguousarray(windows).reshape(-1, 9), kernel).reshape(*windows.shape[:2], self.width)
        np.maximum(x, 0, out=x)
        x = np.pad(self.quantize_depthwise(x), ((1, 1), (1, 1), (0, 0)))
        step = self.subsampling // 2
        frames, bins = (x.shape[0] - 3) // step + 1, (x.shape[1] - 3) // 2 + 1
        # Over frames all bins' channels are filtered alike, and a filter's three bins are added up.
        y = np.tile(self.bias, (frames, bins))
        for column in range(3):
            part = np.ascontiguousarray(x[:, column : column + 2 * bins - 1 : 2]).reshape(len(x), -1)
            y += kernel.depthwise(part, *self.columns[column], step)
        y = y.reshape(frames, bins, self.width)
        rows = self.quantize_pointwise(y).reshape(-1, self.width)
        y = kernel.float_product(rows, self.pointwise, self.width, self.pointwise_bias)
        np.maximum(y, 0, out=y)
        return y.reshape(frames, -1)


class FrontEnd:
    """Log-mel, stem, a linear layer to the encoder's width and a norm."""

    def __init__(self, tensors: Tensors, config: ModelConfig) -> None:
        front_end, dim = config.front_end, config.encoder.dim
        self.subsampling = front_end.subsampling
        self.log_mel = LogMel(tensors, front_end.mels, front_end.normalisation == "utterance")
        self.stem: StackingStem | ConvolutionStem
        order = None
        if front_end.stem == "stack":
            self.stem = StackingStem(front_end.mels, front_end.subsampling)
        else:
            width = front_end.width
            self.stem = ConvolutionStem(tensors, front_end.mels, front_end.subsampling, width)
            # The file's inputs are channel by channel, the stem's outputs bin by bin.
            order = np.arange(self.stem.dim).reshape(width, -1).T.ravel()
        self.projection = tensors.linear("front_end.projection", self.stem.dim, dim, order)
        self.norm = tensors.take("front_end.norm.weight", dim), tensors.take("front_end.norm.bias", dim)

    def frame_count(self, samples: int) -> int:
        """Encoder frames of an utterance of that many samples."""
        mel_frames = -(-samples // HOP)
        return -(-mel_frames // self.subsampling)

    def part(self, features: Floats, offset: int, first: int, end: int, kernel: Native) -> Floats:
        """Encoder frames `first` up to `end`, (frames, dim), from log-mel features that begin with frame `offset`.

        There are features around them as far as the stem sees, or the utterance begins or ends.
        """
        start = max(0, first - self.stem.before)
        stop = (end - 1) * self.subsampling + max(self.stem.after, self.subsampling - 1) + 1
        stacked = self.stem(features[start * self.subsampling - offset : stop - offset], kernel)
        stacked = np.ascontiguousarray(stacked[first - start : end - start])
        return kernel.layer_norm(self.projection(stacked, kernel), *self.norm)

    def __call__(self, samples: Floats, kernel: Native) -> Floats:
        """(samples,) -> (frames, dim)."""
        features = self.log_mel(samples, -(-len(samples) // HOP), kernel)
        frames = self.frame_count(len(samples))
        # In parts, as the stem's channels take more memory than all else.
        parts = [self.part(features, 0, n, min(n + 64, frames), kernel) for n in range(0, frames, 64)]
        return np.concatenate(parts)
