"""AudioEncoder: waveforms -> hidden states of one shape, whatever the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.config import ModelConfig
from upstreams.encoders import build_encoder
from upstreams.errors import UserError
from upstreams.frontend import LogMelFrontEnd, padding_mask


class AudioEncoder(nn.Module):
    """Front-end and encoder, with a fixed standardisation of every hidden state that `fit_output` measures.

    A softmax-weighted sum over layers (SUPERB's featurizer) starts from equal weights; without the standardisation the
    layers of largest scale drown the others.
    """

    output_mean: Tensor
    output_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.front_end = LogMelFrontEnd(config.front_end.mels, config.front_end.subsampling, dim)
        self.encoder = build_encoder(config.encoder)
        self.register_buffer("output_mean", torch.zeros(config.encoder.layers + 1, dim))
        self.register_buffer("output_std", torch.ones(config.encoder.layers + 1, dim))

    def frame_count(self, samples: Tensor) -> Tensor:
        """Frames of utterances of that many samples (any shape of integers)."""
        return self.front_end.frame_count(samples)

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the encoder is given: (batch, samples), (batch,) samples -> (batch, frames, dim), (batch,) frames."""
        lengths = check_waveforms(waveforms, lengths)
        # The first window of an utterance shorter than it reaches past the end: what lies there must be zero.
        return self.front_end(waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0), lengths)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, layers: int | None = None
    ) -> tuple[Tensor, ...]:
        """Hidden states, standardised, zero where padded.

        waveforms: (batch, samples), 16 kHz in [-1, 1], padded to the longest; lengths: (batch,) in samples, all whole
        when None; layers: how many blocks to run, all when None. Returns layers + 1 tensors (batch, frames, dim).
        Raises ValueError on input that is no such batch.
        """
        embedded, frames = self.embed(waveforms, lengths)
        states = self.encoder(embedded, frames, layers)
        padded = padding_mask(frames, states[0].shape[1])[..., None]
        return tuple(
            ((state - mean) / std).masked_fill(padded, 0.0)
            for state, mean, std in zip(states, self.output_mean, self.output_std, strict=False)
        )

    @torch.no_grad()
    def fit_output(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Set the standardisation from batches of (waveforms, lengths): mean and deviation a layer and dimension."""
        self.output_mean.zero_()
        self.output_std.fill_(1.0)
        count = 0
        total, squares = self.output_mean.double(), torch.zeros_like(self.output_mean, dtype=torch.float64)
        for waveforms, lengths in batches:
            states = torch.stack(self(waveforms, lengths)).double()  # (layers, batch, frames, dim), zero where padded
            count += int(self.frame_count(lengths).sum())
            total += states.sum((1, 2))
            squares += states.square().sum((1, 2))
        mean = total / count
        variance = squares / count - mean**2
        self.output_mean.copy_(mean)
        self.output_std.copy_(variance.clamp_min(1e-6).sqrt())


def check_waveforms(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """The lengths of a valid batch; raises UserError (a ValueError) that names the first fault."""
    if waveforms.ndim != 2:
        raise UserError(f"waveforms must be (batch, samples), not of shape {tuple(waveforms.shape)}")
    if not waveforms.is_floating_point():
        raise UserError(f"waveforms must be floating point in [-1, 1], not {waveforms.dtype}")
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    if lengths.shape != (len(waveforms),):
        raise UserError(f"lengths must have one entry an utterance ({len(waveforms)}), not {tuple(lengths.shape)}")
    if len(lengths) == 0 or int(lengths.min()) < 1:
        raise UserError("every utterance needs at least one sample")
    if int(lengths.max()) > waveforms.shape[1]:
        raise UserError(f"a length of {int(lengths.max())} is longer than the batch's {waveforms.shape[1]} samples")
    finite = torch.isfinite(waveforms).all(1)
    if not bool(finite.all()):
        raise UserError(f"utterance {int((~finite).nonzero()[0])} of the batch holds NaN or infinite samples")
    return lengths
