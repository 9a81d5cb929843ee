"""Run a packed file with numpy and the compiled runtime alone: for devices. Imports no torch.

from upstreams.packed.runtime import Runtime

runtime = Runtime("sparseformer_dn_s_w1a1.safetensors")
hidden_states = runtime(waveform)  # 16 kHz, mono, in [-1, 1]
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError
from upstreams.packed import kernels
from upstreams.packed.library import LEVELS, MAX_THREADS, Floats, Model, Session, address, call


class Runtime:
    """A packed model. Python threads may share it: their calls run one after the other.

    packed: path of a packed file, or a model that is already loaded. threads: of the kernel. Raises UserError if the
    file is invalid, and if no native kernel is selected.
    """

    def __init__(self, packed: str | os.PathLike[str] | Model, threads: int = 1) -> None:
        level = kernels.chosen()
        if level not in LEVELS:
            raise UserError(
                f"the runtime without torch needs the compiled kernel, but the selected kernel is {level}; "
                f"reinstall superbit with a C++ compiler or unset {kernels.VARIABLE}"
            )
        if type(threads) is not int or threads < 1:
            raise UserError(f"threads is {threads!r}, but must be a whole number >= 1")
        self.model = packed if isinstance(packed, Model) else Model(Path(packed))
        self.config = from_dict(ModelConfig, json.loads(self.model.config), "the configuration")
        self.slots = self.model.slots
        self.session = Session(self.model, min(threads, MAX_THREADS), level)
        self.lock = threading.Lock()

    def frame_count(self, samples: int) -> int:
        """Return the number of frames of an utterance of `samples` samples."""
        return self.model.frame_count(samples)

    def __call__(self, waveform: ArrayLike, layers: int | None = None) -> list[Floats]:
        """(samples,) at 16 kHz in [-1, 1] -> layers + 1 hidden states (frames, dim), equal to the torch model's.

        layers: number of blocks to run, None for all. Raises UserError on an invalid or empty waveform.
        """
        return list(self.batch([waveform], layers)[0])

    def batch(self, waveforms: Sequence[ArrayLike], layers: int | None = None) -> list[Floats]:
        """Return the hidden states (layers + 1, frames, dim) of each waveform. The threads share the waveforms."""
        samples = [_speech(waveform) for waveform in waveforms]
        layers = self.config.encoder.blocks_to_run(layers)
        states = [self._states(self.frame_count(len(one)), layers) for one in samples]
        self.run(samples, layers, states)
        return states

    def run(self, samples: Sequence[Floats], layers: int, states: Sequence[Floats]) -> None:
        """Compute the hidden states of valid waveforms into arrays (layers + 1, frames, dim)."""
        count = len(samples)
        inputs = (ctypes.c_void_p * count)(*(address(one) for one in samples))
        lengths = (ctypes.c_int64 * count)(*(len(one) for one in samples))
        outputs = (ctypes.c_void_p * count)(*(address(one) for one in states))
        with self.lock:
            call("forward_batch", self.session.handle, count, inputs, lengths, layers, outputs)

    def weighted_sum(self, waveform: ArrayLike, weights: ArrayLike) -> Floats:
        """Return the sum of all hidden states times `weights` (layers + 1,), (frames, dim)."""
        samples, factors = _speech(waveform), np.ascontiguousarray(weights, np.float32)
        if factors.shape != (self.config.encoder.layers + 1,):
            raise UserError(f"weights have shape {factors.shape}, but must be ({self.config.encoder.layers + 1},)")
        out = self._states(self.frame_count(len(samples)), 0)[0]
        with self.lock:
            call("weighted_sum", self.session.handle, address(samples), len(samples), address(factors), address(out))
        return out

    def scores(self, waveform: ArrayLike) -> dict[str, Floats]:
        """Return the head's scores of the classes (classes,) of each slot, before a softmax.

        Raises UserError if the file holds no head.
        """
        if not self.slots:
            raise UserError("the packed file holds no head: pack it with `superbit pack --with-head HEAD.ckpt`")
        samples = _speech(waveform)
        ends = np.cumsum([len(classes) for classes in self.slots.values()])
        out = np.empty(ends[-1], np.float32)
        with self.lock:
            call("decide", self.session.handle, address(samples), len(samples), address(out), None)
        return dict(zip(self.slots, np.split(out, ends[:-1]), strict=True))

    def decide(self, waveform: ArrayLike) -> dict[str, str]:
        """Return the class of the highest score of each slot. Raises UserError if the file holds no head."""
        return {slot: self.slots[slot][int(scores.argmax())] for slot, scores in self.scores(waveform).items()}

    def front_end(self, waveform: ArrayLike) -> Floats:
        """Return the encoder's input (frames, dim)."""
        samples = _speech(waveform)
        out = self._states(self.frame_count(len(samples)), 0)[0]
        with self.lock:
            call("front_end", self.session.handle, address(samples), len(samples), address(out))
        return out

    def encode(self, x: Floats, layers: int | None = None) -> list[Floats]:
        """The front-end's output (frames, dim) -> layers + 1 hidden states."""
        layers = self.config.encoder.blocks_to_run(layers)
        if x.ndim != 2 or x.shape[1] != self.config.encoder.dim or len(x) == 0:
            raise UserError(f"frames have shape {x.shape}, but must be (frames, {self.config.encoder.dim})")
        frames, states = np.ascontiguousarray(x, np.float32), self._states(len(x), layers)
        with self.lock:
            call("encode", self.session.handle, address(frames), len(frames), layers, address(states))
        return list(states)

    def _states(self, frames: int, layers: int) -> Floats:
        return np.empty((layers + 1, frames, self.config.encoder.dim), np.float32)


def checked_waveform(waveform: ArrayLike) -> Floats:
    """Return a waveform as float32 (samples,). Raises UserError unless it is floating-point, (samples,) and finite."""
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"a waveform must be floating point of shape (samples,), not {samples.dtype} {samples.shape}")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(samples, np.float32)
    if not np.isfinite(single).all():
        raise UserError("the waveform holds NaN or infinite samples")
    return single


def _speech(waveform: ArrayLike) -> Floats:
    samples = checked_waveform(waveform)
    if len(samples) == 0:
        raise UserError("the waveform is empty: give at least one sample")
    return samples
