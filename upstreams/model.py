"""AudioEncoder: waveforms -> hidden states of one shape, whatever the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.config import ModelConfig
from upstreams.encoders import build_encoder
from upstreams.errors import UserError
from upstreams.frontend import LogMelFrontEnd, padding_mask

WHITENING_FLOOR = 1e-3  # of the mean variance: directions that hold less are noise, and are not amplified to 1


class AudioEncoder(nn.Module):
    """Front-end and encoder, with a fixed affine map of every hidden state that `fit_output` measures.

    Each dimension of each layer is standardised, then all layers are decorrelated by one common matrix. A
    softmax-weighted sum over layers (SUPERB's featurizer) starts from equal weights: without the first, the layers of
    largest scale drown the others; without the second, a handful of directions hold most of the variance, and a small
    head trained for few steps sees little else.
    """

    output_mean: Tensor
    output_std: Tensor
    output_rotation: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.front_end = LogMelFrontEnd(config.front_end.mels, config.front_end.subsampling, dim)
        self.encoder = build_encoder(config.encoder)
        self.register_buffer("output_mean", torch.zeros(config.encoder.layers + 1, dim))
        self.register_buffer("output_std", torch.ones(config.encoder.layers + 1, dim))
        self.register_buffer("output_rotation", torch.eye(dim))

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
        """Hidden states, standardised and decorrelated, zero where padded.

        waveforms: (batch, samples), 16 kHz in [-1, 1], padded to the longest; lengths: (batch,) in samples, all whole
        when None; layers: how many blocks to run, all when None. Returns layers + 1 tensors (batch, frames, dim).
        Raises ValueError on input that is no such batch.
        """
        embedded, frames = self.embed(waveforms, lengths)
        states = self.encoder(embedded, frames, layers)
        padded = padding_mask(frames, states[0].shape[1])[..., None]
        return tuple(
            ((state - mean) / std @ self.output_rotation).masked_fill(padded, 0.0)
            for state, mean, std in zip(states, self.output_mean, self.output_std, strict=False)
        )

    @torch.no_grad()
    def fit_output(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Set the map of `forward`'s hidden states from batches of (waveforms, lengths).

        Mean and deviation a layer and dimension, then ZCA whitening of the correlation that all layers share
        (Bell and Sejnowski, 1997): of all whitening matrices the one that moves the dimensions least.
        """
        self.output_mean.zero_()
        self.output_std.fill_(1.0)
        self.output_rotation.copy_(torch.eye(len(self.output_rotation)))
        valid = []
        for waveforms, lengths in batches:
            states = torch.stack(self(waveforms, lengths), dim=2)  # (batch, frames, layers, dim)
            valid.append(states[~padding_mask(self.frame_count(lengths), states.shape[1])])
        x = torch.cat(valid).double()
        mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-3)
        x = ((x - mean) / std).flatten(0, 1)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        self.output_mean.copy_(mean)
        self.output_std.copy_(std)
        self.output_rotation.copy_((vectors * (values + WHITENING_FLOOR).rsqrt()) @ vectors.T)


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
