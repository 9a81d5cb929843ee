"""Front-ends map waveforms to frames: a log-mel spectrogram and a strided stem, or HuBERT's waveform convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from upstreams.config import FFT, HOP, SAMPLE_RATE, WINDOW, FrontEndConfig
from upstreams.cpu_training.strided import StridedConvolution


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return (batch, longest) bool, True where padded, for lengths (batch,)."""
    return torch.arange(longest, device=lengths.device) >= lengths[:, None]


def mel_filters(mels: int, sample_rate: int = SAMPLE_RATE, low: float = 20.0) -> Tensor:
    """Return Kaldi's triangular filters (FFT // 2 + 1, mels) on the HTK mel scale, from `low` Hz to Nyquist."""

    def to_mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    first, last = (float(to_mel(torch.tensor(hertz))) for hertz in (low, sample_rate / 2))
    edges = torch.linspace(first, last, mels + 2)
    bins = to_mel(torch.arange(FFT // 2 + 1) * sample_rate / FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0)


class LogMel(nn.Module):
    """Log-mel energies at 100 Hz, each bin normalised by statistics of the data set or of the utterance.

    utterance: normalise by statistics of the utterance; otherwise by those of the data set, which the checkpoint holds.
    A frame starts every 10 ms; the last windows reach past the end of the utterance, which is padded with zeros.
    """

    window: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, mels: int = 80, utterance: bool = False) -> None:
        super().__init__()
        self.mels = mels
        self.utterance = utterance
        self.set_constants()
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("std", torch.ones(mels))

    def set_constants(self) -> None:
        """Compute the buffers that no checkpoint holds: again if the module was created on the meta device."""
        if torch.get_default_device().type == "meta":  # only shapes; arithmetic there imports torch's compiler
            window, filters = torch.empty(WINDOW), torch.empty(FFT // 2 + 1, self.mels)
        else:
            window, filters = torch.hann_window(WINDOW, periodic=False), mel_filters(self.mels)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @staticmethod
    def frame_count(samples: Tensor) -> Tensor:
        """Return the number of frames of utterances of `samples` samples (integers of any shape)."""
        return -(-samples // HOP)

    def raw(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (batch, samples) to natural log-mel energies (batch, frames, mels), not normalised."""
        waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[1] % HOP + WINDOW - HOP))
        frames = waveforms.unfold(1, WINDOW, HOP)
        # Single precision leaves rounding errors in weak bins that depend on the library and on the memory's alignment,
        # and that flip signs of 1-bit quantizers. In double precision every library rounds to the same power.
        spectrum = torch.fft.rfft(frames.double() * self.window.double(), FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        power = power.to(torch.promote_types(frames.dtype, self.window.dtype))
        # In half precision the logarithm of small energies would have steps of several per cent.
        energies = (power @ self.filters.to(power.dtype)).to(power.dtype)
        # 1e-6 keeps digital silence finite. It hides the quantization noise of 16-bit audio (about 1e-7 per bin).
        return torch.log(energies + 1e-6)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, frames, mels), zero where padded, and (batch,) frames.

        waveforms: (batch, samples). lengths: (batch,) samples.
        """
        features, frames = self.raw(waveforms), self.frame_count(lengths)
        padded = padding_mask(frames, features.shape[1])[..., None]
        mean, std = self.mean, self.std
        if self.utterance:
            mean, std = masked_moments(features, padded, frames)
        return ((features - mean) / std).masked_fill(padded, 0.0).to(self.mean.dtype), frames


def masked_moments(x: Tensor, padded: Tensor, frames: Tensor, dim: int = 1, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of x over the valid frames of each utterance, in at least single precision.

    x: three dimensions, with the batch first and frames along `dim`. padded: True where x is padding. frames: (batch,)
    valid frames. eps: added to the variance. The results keep `dim` with size 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = frames[:, None, None]
    mean = x.masked_fill(padded, 0.0).sum(dim, keepdim=True) / count
    centred = (x - mean).masked_fill_(padded, 0.0)
    # A norm squares and sums in one pass over x, which has 65 MB after a waveform convolution of 10 s of audio.
    variance = torch.linalg.vector_norm(centred, dim=dim, keepdim=True).square() / count
    return mean, (variance + eps).sqrt()


class StackingStem(nn.Module):
    """Concatenates `subsampling` frames, as MelHuBERT (arXiv 2211.09944); the last frames are padded with zeros."""

    def __init__(self, mels: int, subsampling: int) -> None:
        super().__init__()
        self.subsampling = subsampling
        self.dim = mels * subsampling

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Map features (batch, frames, mels), zero where padded, to (batch, ceil(frames / subsampling), dim)."""
        features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % self.subsampling))
        return features.unflatten(1, (-1, self.subsampling)).flatten(2)


class ConvolutionStem(nn.Module):
    """Two 3 x 3 convolutions over time and frequency, the second depthwise separable (Squeezeformer, section 3.2).

    width: their channels. Both halve the mel bins. The first halves the frames, the second only if `subsampling` is 4.
    """

    def __init__(self, mels: int, subsampling: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, stride=(subsampling // 2, 2), padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.dim = width * -(-mels // 4)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Map features (batch, frames, mels), zero where padded, to (batch, ceil(frames / subsampling), dim)."""
        x = features[:, None].to(memory_format=torch.channels_last)
        x = nn.functional.relu(self.first(x))
        # The bias makes padding non-zero, and the next convolution reaches it at an utterance's end.
        x = x.masked_fill(padding_mask(-(-frames // 2), x.shape[2])[:, None, :, None], 0.0)
        x = nn.functional.relu(self.pointwise(self.depthwise(x)))
        return x.transpose(1, 2).flatten(2)


def receptive_field_centre(config: FrontEndConfig) -> float:
    """Return the sample, counted from the utterance's begin, at the centre of the receptive field of encoder frame 0.

    Frame i is centred i times the downsample rate later. The window of the log-mel spectrogram and the receptive field
    of the waveform convolutions are both 25 ms long. A stem that stacks log-mel frames is centred on their middle; the
    strided convolutions are centred on every second or fourth log-mel frame, from the first one on.
    """
    stacked = config.kind == "log_mel" and config.stem == "stack"
    return WINDOW / 2 + (HOP * (config.subsampling - 1) / 2 if stacked else 0.0)


class LogMelFrontEnd(nn.Module):
    """Log-mel, a stem that divides the frame rate by `subsampling`, a linear layer to `dim`, and a norm.

    width: channels of the convolutional stem, independent of the encoder's width; None: stack frames instead.
    utterance: normalise by statistics of the utterance.
    """

    def __init__(
        self, mels: int, subsampling: int, dim: int, width: int | None = None, utterance: bool = False
    ) -> None:
        super().__init__()
        self.log_mel = LogMel(mels, utterance)
        self.subsampling = subsampling
        self.stem = StackingStem(mels, subsampling) if width is None else ConvolutionStem(mels, subsampling, width)
        self.projection = nn.Linear(self.stem.dim, dim)
        nn.init.normal_(self.projection.weight, std=1 / math.sqrt(self.stem.dim))
        self.norm = nn.LayerNorm(dim)

    def frame_count(self, samples: Tensor) -> Tensor:
        """Return the number of encoder frames of utterances of `samples` samples (integers of any shape)."""
        return -(-LogMel.frame_count(samples) // self.subsampling)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map waveforms (batch, samples), lengths (batch,) in samples, to (batch, frames, dim) and (batch,) frames."""
        features, frames = self.log_mel(waveforms, lengths)
        return self.norm(self.projection(self.stem(features, frames))), self.frame_count(lengths)


class WaveformFrontEnd(nn.Module):
    """HuBERT's seven convolutions (arXiv 2106.07447, section 3.1), then a norm and a linear layer to `dim`.

    width: channels of the convolutions. norm: "group" normalises each channel over the frames of the utterance, after
    the first convolution (Base); "layer" normalises each frame, after every convolution, which then has a bias (Large).
    eps: None, or normalise each waveform to zero mean and unit variance first, with eps added to the variance.
    projection_norm: False leaves out the norm before the linear layer (DistilHuBERT). Frames are 20 ms apart. An
    utterance shorter than one window (25 ms) is padded with zeros.
    """

    KERNELS = (10, 3, 3, 3, 3, 2, 2)
    STRIDES = (5, 2, 2, 2, 2, 2, 2)
    SHORTEST = 400  # samples: the receptive field of one frame

    def __init__(
        self, width: int, dim: int, norm: str = "group", eps: float | None = None, projection_norm: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.group = norm == "group"
        self.convolutions = nn.ModuleList(
            nn.Conv1d(1 if layer == 0 else width, width, kernel, stride, bias=not self.group)
            for layer, (kernel, stride) in enumerate(zip(self.KERNELS, self.STRIDES, strict=True))
        )
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight)  # type: ignore[arg-type]
        # One affine norm for the first convolution, or one for each.
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in (self.KERNELS[:1] if self.group else self.KERNELS))
        self.norm = nn.LayerNorm(width) if projection_norm else nn.Identity()
        self.projection = nn.Linear(width, dim)

    def frame_count(self, samples: Tensor) -> Tensor:
        """Return the number of encoder frames of utterances of `samples` samples (integers of any shape)."""
        frames = samples.clamp_min(self.SHORTEST)
        for kernel, stride in zip(self.KERNELS, self.STRIDES, strict=True):
            frames = (frames - kernel) // stride + 1
        return frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map waveforms (batch, samples), lengths (batch,) in samples, to (batch, frames, dim) and (batch,) frames."""
        x, frames = self.convolve(waveforms, lengths)
        return self.project(x), frames

    def project(self, x: Tensor) -> Tensor:
        """Map the output of `convolve`, (batch, frames, width), to (batch, frames, dim)."""
        return self.projection(self.norm(x))

    def convolve(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last convolution's output (batch, frames, width) and (batch,) frames. Arguments as `forward`'s."""
        if self.eps is not None:
            padded = padding_mask(lengths, waveforms.shape[1])[..., None]
            mean, std = masked_moments(waveforms[..., None], padded, lengths, eps=self.eps)
            waveforms = ((waveforms[..., None] - mean) / std).masked_fill(padded, 0.0).squeeze(-1)
        # Pad to SHORTEST or more; without a branch, as the size may be symbolic while a graph is exported.
        waveforms = nn.functional.pad(waveforms, (0, max(0, self.SHORTEST - waveforms.shape[1])))
        if self._runs_per_utterance(waveforms):
            frames = self.frame_count(lengths)
            samples = lengths.clamp_min(self.SHORTEST).tolist()
            outputs = [self._convolve_one(w[:n, None].contiguous()) for w, n in zip(waveforms, samples, strict=True)]
            return nn.utils.rnn.pad_sequence(outputs, batch_first=True), frames
        x = waveforms[:, None].to(next(self.norms.parameters()).dtype)
        frames = lengths.clamp_min(self.SHORTEST)
        for layer, convolution in enumerate(self.convolutions):
            x = convolution(x)
            frames = (frames - self.KERNELS[layer]) // self.STRIDES[layer] + 1
            if self.group and layer == 0:
                x = self._normalise_channels(x, frames)
            elif not self.group:
                x = self.norms[layer](x.transpose(1, 2)).transpose(1, 2)
            x = nn.functional.gelu(x)
        return x.transpose(1, 2), frames

    def _runs_per_utterance(self, waveforms: Tensor) -> bool:
        """True if the convolutions run on each utterance alone, frames first, which is faster in training on a CPU."""
        return (
            self.training
            and waveforms.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and all(type(convolution) is nn.Conv1d for convolution in self.convolutions)
        )

    def _convolve_one(self, x: Tensor) -> Tensor:
        """Map one utterance without padding, (samples, 1), to (frames, width)."""
        for layer, convolution in enumerate(self.convolutions):
            x = StridedConvolution.apply(x, convolution.weight, self.STRIDES[layer])
            if isinstance(convolution.bias, Tensor):
                x = x + convolution.bias
            if self.group and layer == 0:
                affine = self.norms[0]
                assert isinstance(affine, nn.LayerNorm)
                # On one utterance batch normalisation has the statistics of each channel over all frames.
                x = nn.functional.batch_norm(x, None, None, affine.weight, affine.bias, training=True)
            elif not self.group:
                x = self.norms[layer](x)
            x = nn.functional.gelu(x)
        return x

    def _normalise_channels(self, x: Tensor, frames: Tensor) -> Tensor:
        """Normalise each channel of x (batch, channels, frames) over the valid frames of the utterance."""
        mean, std = masked_moments(x, padding_mask(frames, x.shape[2])[:, None], frames, dim=2)
        affine = self.norms[0]
        assert isinstance(affine, nn.LayerNorm)
        scale = affine.weight[:, None] / std
        return torch.addcmul(affine.bias[:, None] - mean * scale, x, scale).to(x.dtype)


FrontEnd = LogMelFrontEnd | WaveformFrontEnd


def build_front_end(config: FrontEndConfig, dim: int) -> FrontEnd:
    """Return the front-end of `config` for an encoder of width `dim`."""
    utterance = config.normalisation == "utterance"
    if config.kind == "waveform":
        eps = config.normalisation_eps if utterance else None
        return WaveformFrontEnd(config.width, dim, config.feature_norm, eps, config.projection_norm)
    width = config.width if config.stem == "convolution" else None
    return LogMelFrontEnd(config.mels, config.subsampling, dim, width, utterance)
