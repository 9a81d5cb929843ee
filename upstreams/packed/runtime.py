"""Run a packed file with numpy and the native kernel alone: for devices. Imports no torch.

from upstreams.packed.runtime import Runtime

runtime = Runtime("sparseformer_dn_s_w1a1.safetensors")
hidden_states = runtime(waveform)  # 16 kHz, mono, in [-1, 1]
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.packed import file, kernels
from upstreams.packed.encoder import Block, Norm, Positions, activation
from upstreams.packed.layout import Floats
from upstreams.packed.linear import FloatLinear
from upstreams.packed.log_mel import FrontEnd
from upstreams.packed.native import LEVELS, MAX_THREADS, Native, release_memory
from upstreams.packed.tensors import TensorReader


def is_supported(config: ModelConfig) -> bool:
    """True if the runtime has the encoder and the front-end of `config`."""
    return config.encoder.kind in ("transformer", "sparseformer") and config.front_end.kind == "log_mel"


class Runtime:
    """A packed model.

    packed: path or contents of a packed file. threads: of the native kernel. Raises UserError if the file is invalid,
    if no native kernel is selected, or if the model needs torch: Conformers, Squeezeformers and waveform front-ends.
    """

    def __init__(self, packed: str | os.PathLike[str] | file.PackedFile, threads: int = 1) -> None:
        if not isinstance(packed, file.PackedFile):
            packed = file.read(Path(packed))
        level = kernels.chosen()
        if level not in LEVELS:
            raise UserError(
                f"the runtime without torch needs the compiled kernel, but the selected kernel is {level}; "
                f"reinstall superbit with a C++ compiler or unset {kernels.VARIABLE}"
            )
        if not is_supported(packed.config):
            model = f"a {packed.config.encoder.kind} with a {packed.config.front_end.kind} front-end"
            raise UserError(
                f"{packed.path} holds {model}: without torch only log-mel Transformers and Sparseformers run"
            )
        if type(threads) is not int or threads < 1:
            raise UserError(f"threads is {threads!r}, but must be a whole number >= 1")
        self.kernel = Native.at(level, min(threads, MAX_THREADS))
        self.config = packed.config
        self._build(TensorReader(packed), packed.config)
        release_memory()

    def _build(self, tensors: TensorReader, config: ModelConfig) -> None:
        encoder = config.encoder
        self.front_end = FrontEnd(tensors, config)
        self.positions = Positions(tensors, encoder) if encoder.positions == "conv" else None
        self.input_norm = Norm(tensors, "encoder.input_norm") if encoder.norm == "post" else None
        self.blocks = [
            Block(tensors, f"encoder.blocks.{n}", encoder, activation(config, tensors, f"encoder.blocks.{n}"))
            for n in range(encoder.layers)
        ]
        self.norm = Norm(tensors, "encoder.norm") if encoder.norm == "pre" else None
        self.rotation: FloatLinear | None = None
        if config.output_map:
            self.mean = tensors.take("output_mean")
            self.std = tensors.take("output_std")
            rotation = tensors.take("output_rotation")
            self.rotation = FloatLinear(np.ascontiguousarray(rotation.T), np.zeros(encoder.dim, np.float32))

    def frame_count(self, samples: int) -> int:
        """Return the number of frames of an utterance of `samples` samples."""
        return self.front_end.frame_count(samples)

    def __call__(self, waveform: ArrayLike, layers: int | None = None) -> list[Floats]:
        """(samples,) at 16 kHz in [-1, 1] -> layers + 1 hidden states (frames, dim), equal to the torch model's.

        layers: number of blocks to run, None for all. Raises UserError on an invalid or empty waveform.
        """
        samples = checked_waveform(waveform)
        if len(samples) == 0:
            raise UserError("the waveform is empty: give at least one sample")
        return self.encode(self.front_end(samples, self.kernel), layers)

    def encode(self, x: Floats, layers: int | None = None) -> list[Floats]:
        """The front-end's output (frames, dim) -> layers + 1 hidden states."""
        layers = self.config.encoder.blocks_to_run(layers)
        x = self.embed(x)
        states = [self.exported(0, x)]
        for layer, block in enumerate(self.blocks[:layers], 1):
            x = block(x, self.kernel)
            states.append(self.exported(layer, x))
        return states

    def embed(self, x: Floats) -> Floats:
        """The front-end's output -> the first block's input, both (frames, dim)."""
        if self.positions is not None:
            padding = self.positions.before, self.positions.after
            x = x + self.positions(np.pad(x, (padding, (0, 0))), self.kernel, padding)
        return x if self.input_norm is None else self.input_norm(x, self.kernel)

    def exported(self, layer: int, state: Floats) -> Floats:
        """Return hidden state `layer` as the model exports it: the last one normalised, all with the output map."""
        if layer == len(self.blocks) and self.norm is not None:
            state = self.norm(state, self.kernel)
        if self.rotation is None:
            return state
        x = state - self.mean[layer]
        x /= self.std[layer]
        return self.rotation(x, self.kernel)


def checked_waveform(waveform: ArrayLike) -> Floats:
    """Return a waveform as float32 (samples,). Raises UserError unless it is floating-point, (samples,) and finite."""
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"a waveform must be floating point of shape (samples,), not {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError("the waveform holds NaN or infinite samples")
    return np.ascontiguousarray(samples, np.float32)
