"""AudioEncoder maps waveforms to hidden states of one shape, for every kind of encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from upstreams.config import ModelConfig
from upstreams.encoders import build_encoder
from upstreams.errors import UserError
from upstreams.frontend import build_front_end, padding_mask

WHITENING_FLOOR = 1e-3  # added to each variance, so that directions of little variance, which are noise, stay small


class AudioEncoder(nn.Module):
    """Front-end, encoder, and a fixed affine map of the hidden states, the output map, which `fit_output` measures.

    The output map standardises each dimension of each layer, then decorrelates all layers by one common matrix.
    SUPERB's featurizer, a softmax-weighted sum over layers, starts from equal weights. Without standardisation, the
    layers of the largest scale dominate that sum. Without decorrelation, a few directions hold most of the variance,
    and a small head that is trained for few steps learns little from the others.
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
        """Return the number of frames of utterances of `samples` samples (integers of any shape)."""
        return self.front_end.frame_count(samples)

    def embed(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the encoder's input (batch, frames, dim) and its lengths (batch,) in frames.

        waveforms: (batch, samples). lengths: (batch,) in samples; None: no padding. They are not checked: to look at
        values on a GPU is to wait for it, and training checks audio where it is read.
        """
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        # The windows of an utterance reach past its end: the samples there must be zero.
        return self.front_end(waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0), lengths)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, layers: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return layers + 1 hidden states (batch, frames, dim), zero where padded, with any output map applied.

        waveforms: (batch, samples) or (samples,), 16 kHz in [-1, 1], padded to the longest. lengths: (batch,) in
        samples; None: no padding. layers: number of blocks to run; None: all. Raises UserError (a ValueError) on
        invalid input.
        """
        layers = self.config.encoder.blocks_to_run(layers)
        return self.hidden_states(*checked(waveforms, lengths), layers)

    def hidden_states(self, waveforms: Tensor, lengths: Tensor, layers: int | None = None) -> tuple[Tensor, ...]:
        """Return what `forward` returns, of arguments that are not checked (see `embed`)."""
        embedded, frames = self.embed(waveforms, lengths)
        states = self.encoder(embedded, frames, layers)
        if not self.config.output_map:
            return states
        padded = padding_mask(frames, states[0].shape[1])[..., None]
        return tuple(self.mapped(layer, state).masked_fill(padded, 0.0) for layer, state in enumerate(states))

    def mapped(self, layer: int, state: Tensor) -> Tensor:
        """Return the output map of hidden state `layer` (batch, frames, dim), padded frames included."""
        return (state - self.output_mean[layer]) / self.output_std[layer] @ self.output_rotation

    @torch.no_grad()
    def fit_output(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Measure the output map on batches of (waveforms, lengths); without an output map, do nothing.

        Mean and standard deviation of each layer and dimension, then ZCA whitening of the correlation over all layers
        (Bell and Sejnowski, 1997): the whitening matrix that changes the dimensions least. The states are those of eval
        mode, as they are exported, whatever the mode of the model.
        """
        if not self.config.output_map:
            return
        self.output_mean.zero_()
        self.output_std.fill_(1.0)
        self.output_rotation.copy_(torch.eye(len(self.output_rotation)))
        valid = []
        with in_eval_mode(self):
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


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Inside this context the module is in eval mode; afterwards every submodule has the mode that it had before.

    Statistics are measured in it: dropout and layerdrop are off, and batch normalisation's running statistics stay.
    """
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


class _ShapesOnly(TorchFunctionMode):
    """Leaves out the values with which a module would fill its tensors."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if function is torch.eye:
            return torch.empty(args[0], args[0])
        return function(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Create modules on the meta device, where tensors have shapes and no values, without their initialisation.

    It would do nothing there, but the first normal_, eye or comparison of a process on that device imports torch's
    compiler, which takes more than a second.
    """
    with torch.device("meta"), _ShapesOnly():
        yield


def checked(waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a valid batch: waveforms (batch, samples) and lengths (batch,) in samples. Arguments as `AudioEncoder`'s.

    Raises UserError (a ValueError) that names the first fault. Values are not checked on the meta device and while a
    graph is exported, where they do not exist.
    """
    if waveforms.ndim == 1:
        waveforms = waveforms[None]
    if waveforms.ndim != 2:
        raise UserError(f"waveforms have shape {tuple(waveforms.shape)}, but must be (batch, samples) or (samples,)")
    if not waveforms.is_floating_point():
        raise UserError(f"waveforms have type {waveforms.dtype}, but must be floating point in [-1, 1]")
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    if lengths.shape != (len(waveforms),):
        raise UserError(f"lengths have shape {tuple(lengths.shape)}, but must have one per utterance: {len(waveforms)}")
    if waveforms.is_meta or torch.compiler.is_exporting():
        return waveforms, lengths
    if len(lengths) == 0:
        raise UserError("the batch has no utterance, but needs at least one")
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
