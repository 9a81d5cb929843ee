"""The log-mel front-end in numpy, for whole utterances and for parts of them. Imports no torch.

A frame's result does not depend on how many frames are computed at once: a part equals the whole to the last bit.
"""

from __future__ import annotations

import numpy as np

from upstreams.config import FFT, HOP, WINDOW, ModelConfig
from upstreams.packed.layout import Floats, pad_to_block, to_float_blocks
from upstreams.packed.linear import FloatLinear
from upstreams.packed.native import Native
from upstreams.packed.tensors import TensorReader


class LogMel:
    """Log-mel energies at 100 Hz, normalised by statistics of the data set or of the utterance."""

    def __init__(self, tensors: TensorReader, mels: int, per_utterance: bool) -> None:
        # In double precision, as in upstreams/frontend.py: the power is then the same to the last bit.
        self.window = tensors.take("front_end.log_mel.window").astype(np.float64)
        filters = tensors.take("front_end.log_mel.filters")
        self.filters = FloatLinear(filters.T, np.zeros(mels, np.float32))
        self.mean = tensors.take("front_end.log_mel.mean")
        self.std = tensors.take("front_end.log_mel.std")
        self.per_utterance = per_utterance

    def __call__(self, samples: Floats, frames: int, kernel: Native) -> Floats:
        """Return the first `frames` frames, (frames, mels). Zeros follow the samples (samples,)."""
        needed = max(0, (frames - 1) * HOP + WINDOW)
        padded = np.zeros(needed, np.float32)
        padded[: min(needed, len(samples))] = samples[:needed]
        windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
        features = np.empty((frames, len(self.mean)), np.float32)
        for first in range(0, frames, 128):  # in parts: the spectra of a minute are large
            spectrum = np.fft.rfft(windows[first : first + 128] * self.window, FFT)
            power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
            features[first : first + 128] = np.log(self.filters(power, kernel) + np.float32(1e-6))
        mean, std = self.mean, self.std
        if self.per_utterance:
            mean, std = features.mean(0), np.sqrt(features.var(0) + np.float32(1e-5))
        return (features - mean) / std


class StackingStem:
    """Concatenates `subsampling` frames; zeros complete the last group."""

    before, after = 0, 0  # context of an output frame: output frames to the left, input frames to the right

    def __init__(self, mels: int, subsampling: int) -> None:
        self.subsampling, self.dim = subsampling, mels * subsampling

    def __call__(self, features: Floats, kernel: Native) -> Floats:
        """(frames, mels) -> (ceil(frames / subsampling), dim)."""
        missing = -len(features) % self.subsampling
        return np.pad(features, ((0, missing), (0, 0))).reshape(-1, self.dim)


class ConvolutionStem:
    """Two 3 x 3 convolutions over time and frequency, the second one depthwise separable, channels last."""

    after = 3

    def __init__(self, tensors: TensorReader, mels: int, subsampling: int, width: int) -> None:
        self.subsampling, self.width = subsampling, width
        self.before = 1 if subsampling == 4 else 2
        self.dim = width * -(-mels // 4)
        name = "front_end.stem"
        first, bias, self.quantize_first = tensors.convolution(f"{name}.first", width, 1, 3, 3)
        self.first = FloatLinear(first.reshape(width, 9), bias)
        depthwise, self.bias, self.quantize_depthwise = tensors.convolution(f"{name}.depthwise", width, 1, 3, 3)
        bins = -(-mels // 4)
        zeros = np.zeros(bins * width, np.float32)
        # (taps over frames, channels of all bins) and bias, for each of the three bins that a filter sees
        taps = [np.ascontiguousarray(depthwise[:, 0, :, column].T) for column in range(3)]
        self.columns = [(np.tile(column, (1, bins)), zeros) for column in taps]
        pointwise, bias, self.quantize_pointwise = tensors.convolution(f"{name}.pointwise", width, width, 1, 1)
        self.pointwise, self.pointwise_bias = to_float_blocks(pointwise.reshape(width, width)), pad_to_block(bias)

    def __call__(self, features: Floats, kernel: Native) -> Floats:
        """(frames, mels) -> (ceil(frames / subsampling), bins * width)."""
        padded = np.pad(self.quantize_first(features[..., None])[..., 0], 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2]
        x = self.first(np.ascontiguousarray(windows).reshape(-1, 9), kernel).reshape(*windows.shape[:2], self.width)
        np.maximum(x, 0, out=x)
        x = np.pad(self.quantize_depthwise(x), ((1, 1), (1, 1), (0, 0)))
        step = self.subsampling // 2
        frames, bins = (x.shape[0] - 3) // step + 1, (x.shape[1] - 3) // 2 + 1
        # One convolution over frames for each of the three bins of a filter; their sum is the 2-d convolution.
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
    """Log-mel, stem, a linear layer to the width of the encoder, and a norm."""

    def __init__(self, tensors: TensorReader, config: ModelConfig) -> None:
        front_end = config.front_end
        self.subsampling = front_end.subsampling
        self.log_mel = LogMel(tensors, front_end.mels, front_end.normalisation == "utterance")
        self.stem: StackingStem | ConvolutionStem
        order = None
        if front_end.stem == "stack":
            self.stem = StackingStem(front_end.mels, front_end.subsampling)
        else:
            width = front_end.width
            self.stem = ConvolutionStem(tensors, front_end.mels, front_end.subsampling, width)
            # The inputs in the file are ordered by channel, the outputs of the stem by bin.
            order = np.arange(self.stem.dim).reshape(width, -1).T.ravel()
        self.projection = tensors.linear("front_end.projection", self.stem.dim, order)
        self.norm = tensors.take("front_end.norm.weight"), tensors.take("front_end.norm.bias")

    def frame_count(self, samples: int) -> int:
        """Return the number of encoder frames of an utterance of `samples` samples."""
        mel_frames = -(-samples // HOP)
        return -(-mel_frames // self.subsampling)

    def part(self, features: Floats, offset: int, first: int, end: int, kernel: Native) -> Floats:
        """Return the encoder frames `first` to `end - 1`, (frames, dim).

        features: log-mel frames from frame `offset` on, (frames, mels). They must include the stem's context, except
        where the utterance begins or ends.
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
        # In parts: the channels of the stem take more memory than everything else.
        parts = [self.part(features, 0, n, min(n + 64, frames), kernel) for n in range(0, frames, 64)]
        return np.concatenate(parts)
