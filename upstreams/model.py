"""AudioEncoder: waveforms -> hidden states of one shape, whatever the encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.config import ModelConfig
from upstreams.encoders import build_encoder
from upstreams.errors import UserError
from upstreams.frontend import build_front_end, padding_mask

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
        self.front_end = build_front_end(config.front_end, dim)
        self.encoder = build_encoder(config.encoder)
        if not config.output_map:
            return
        self.register_buffer("output_mean", torch.zeros(config.encoder.layers + 1, dim))
        self.register_buffer("output_std", torch.ones(config.encoder.layers + 1, dim))
        self.register_buffer("output_rotation", torch.eye(dim))

    def frame_count(self, samples: Tensor) -> Tensor:
        """Frames of utterances of that many samples (any shape of integers)."""
        return self.front_end.frame_count(samples)

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the encoder is given: (batch, samples), (batch,) samples -> (batch, frames, dim), (batch,) frames."""
        waveforms, lengths = checked(waveforms, lengths)
        # The first window of an utterance shorter than it reaches past the end: what lies there must be zero.
        return self.front_end(waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0), lengths)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, layers: int | None = None
    ) -> tuple[Tensor, ...]:
        """Hidden states, zero where padded; standardised and decorrelated where the configuration says `output_map`.

        waveforms: (batch, samples) or (samples,), 16 kHz in [-1, 1], padded to the longest; lengths: (batch,) in
        samples, all whole when None; layers: how many blocks to run, all when None. Returns layers + 1 tensors
        (batch, frames, dim).
        Raises ValueError on input that is no such batch.
        """
        embedded, frames = self.embed(waveforms, lengths)
        states = self.encoder(embedded, frames, layers)
        if not self.config.output_map:
            return states
        padded = padding_mask(frames, states[0].shape[1])[..., None]
        return tuple(self.mapped(layer, state).masked_fill(padded, 0.0) for layer, state in enumerate(states))

    def mapped(self, layer: int, state: Tensor) -> Tensor:
        """Hidden state `layer` (batch, frames, dim) as it is exported, padded frames included."""
        return (state - self.output_mean[layer]) / self.output_std[layer] @ self.output_rotation

    @torch.no_grad()
    def fit_output(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Set the map of `forward`'s hidden states from batches of (waveforms, lengths).

        Mean and deviation a layer and dimension, then ZCA whitening of the correlation that all layers share
        (Bell and Sejnowski, 1997): of all whitening matrices the one that moves the dimensions least. Does nothing
        where the configuration has no map.
        """
        if not self.config.output_map:
            return
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


def checked(waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """A valid batch of waveforms (batch, samples) and its lengths (batch,).

    Raises UserError (a ValueError) that names the first fault. What depends on values is not checked where there are
    none: on the meta device, and while a graph is exported.
    """
    if waveforms.ndim == 1:
        waveforms = waveforms[None]
    if waveforms.ndim != 2:
        raise UserError(f"waveforms must be (batch, samples) or (samples,), not of shape {tuple(waveforms.shape)}")
    if not waveforms.is_floating_point():
        raise UserError(f"waveforms must be floating point in [-1, 1], not {waveforms.dtype}")
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    if lengths.shape != (len(waveforms),):
        raise UserError(f"lengths must have one entry an utterance ({len(waveforms)}), not {tuple(lengths.shape)}")
    if waveforms.is_meta or torch.compiler.is_exporting():
        return waveforms, lengths
    if len(lengths) == 0:
        raise UserError("the batch holds no utterance: at least one is needed")
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    if int(lengths[shortest]) < 1:
        raise UserError(
            f"utterance {shortest} of the batch has length {int(lengths[shortest])}, but needs at least one sample"
        )
    if int(lengths[longest]) > waveforms.shape[1]:
        raise UserError(
            f"utterance {longest} of the batch has length {int(lengths[longest])}, "
            f"longer than the batch's {waveforms.shape[1]} samples"
        )
    finite = torch.isfinite(waveforms).all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        value = float(waveforms[first][~torch.isfinite(waveforms[first])][0])
        raise UserError(f"utterance {first} of the batch holds NaN or infinite samples (the first is {value})")
    return waveforms, lengths
