"""Streaming: the hidden states of a Sparseformer while the waveform arrives. Imports no torch.

Every part of a Sparseformer looks a bounded number of frames ahead. A frame of hidden state l is therefore final, equal
to the frame of the whole utterance, once `Stream.samples_needed(l, frame)` samples have arrived. The memory kept
between calls is bounded too, however long the utterance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from upstreams.config import HOP, WINDOW
from upstreams.errors import UserError
from upstreams.packed.attention import Operands
from upstreams.packed.encoder import Block
from upstreams.packed.layout import Array, Floats
from upstreams.packed.native import Native
from upstreams.packed.runtime import Runtime, checked_waveform

MAX_CHUNK = 16_000  # samples: longer chunks are split, so that they take no more memory
ALIGNMENT = 32  # keys are dropped by whole words of bits: the kernel then adds the same lanes as for a whole utterance


class Stream:
    """One utterance, fed in chunks of any size.

    Raises UserError if the model needs the whole utterance: for attention over all frames, or for a spectrogram that is
    normalised by its own statistics.
    """

    def __init__(self, runtime: Runtime) -> None:
        config = runtime.config
        if config.encoder.kind != "sparseformer":
            raise UserError(f"a {config.encoder.kind} cannot be streamed: its attention sees the whole utterance")
        if config.front_end.normalisation == "utterance":
            raise UserError(
                "a log-mel normalised by the utterance cannot be streamed: it needs statistics of the whole utterance"
            )
        self.runtime = runtime
        dim = config.encoder.dim
        self.no_frames = np.zeros((0, dim), np.float32)
        self.samples = np.zeros(0, np.float32)  # from the first sample of mel frame `self.mel_frames` on
        self.mel_frames = 0  # computed so far
        self.features = np.zeros((0, config.front_end.mels), np.float32)  # from mel frame `self.offset` on
        self.offset = 0
        self.frames = 0  # of the front-end, computed so far
        before = 0 if runtime.positions is None else runtime.positions.before
        self.embedded = np.zeros((before, dim), np.float32)  # with the left context of the positions
        self.blocks = [BlockStream(block) for block in runtime.blocks]
        self.final = [0] * (len(self.blocks) + 1)  # frames returned of each hidden state
        self.is_finished = False

    def samples_needed(self, layer: int, frame: int) -> int:
        """Return the number of samples after which a frame of hidden state `layer` is final without `flush`."""
        runtime, stem = self.runtime, self.runtime.front_end.stem
        after = 0 if runtime.positions is None else runtime.positions.after
        last = frame + after + layer * runtime.config.encoder.radius
        subsampling = runtime.front_end.subsampling
        return (last * subsampling + max(stem.after, subsampling - 1)) * HOP + WINDOW

    def feed(self, chunk: ArrayLike) -> list[Floats]:
        """Add samples (samples,); return the frames of each hidden state that have become final, (frames, dim)."""
        if self.is_finished:
            raise UserError("the stream was flushed: make a new stream for another utterance")
        samples = checked_waveform(chunk)
        parts = [self._advance(samples[at : at + MAX_CHUNK], False) for at in range(0, len(samples), MAX_CHUNK)]
        return self._concatenate(parts)

    def flush(self) -> list[Floats]:
        """End the utterance; return the remaining frames of each hidden state, (frames, dim)."""
        if self.is_finished:
            raise UserError("the stream was already flushed")
        self.is_finished = True
        return self._concatenate([self._advance(np.zeros(0, np.float32), True)])

    def state_bytes(self) -> int:
        """Return the number of bytes kept between calls."""
        kept = [self.samples, self.features, self.embedded]
        return sum(array.nbytes for array in kept) + sum(block.state_bytes() for block in self.blocks)

    def _concatenate(self, parts: list[list[Floats]]) -> list[Floats]:
        columns = zip(*parts, strict=True) if parts else [[self.no_frames]] * len(self.final)
        states = [np.concatenate(column) for column in columns]
        self.final = [count + len(state) for count, state in zip(self.final, states, strict=True)]
        return states

    def _advance(self, samples: Floats, is_last: bool) -> list[Floats]:
        runtime, kernel = self.runtime, self.runtime.kernel
        x = self._positioned(self._front_end(samples, is_last), is_last)
        states = [runtime.exported(0, x) if len(x) else x]
        for layer, block in enumerate(self.blocks, 1):
            x = block.advance(x, is_last, kernel)
            states.append(runtime.exported(layer, x) if len(x) else x)
        return states

    def _front_end(self, samples: Floats, is_last: bool) -> Floats:
        """Add samples; return the frames of the front-end that have become final."""
        front_end, kernel = self.runtime.front_end, self.runtime.kernel
        self.samples = np.concatenate([self.samples, samples])
        ready = -(-len(self.samples) // HOP) if is_last else max(0, (len(self.samples) - WINDOW) // HOP + 1)
        if ready:
            self.features = np.concatenate([self.features, front_end.log_mel(self.samples, ready, kernel)])
            self.samples = self.samples[ready * HOP :].copy()
            self.mel_frames += ready
        ahead = max(front_end.stem.after, front_end.subsampling - 1)
        end = (self.mel_frames - ahead - 1) // front_end.subsampling + 1
        if is_last:
            end = -(-self.mel_frames // front_end.subsampling)
        if end <= self.frames:
            return self.no_frames
        x = front_end.part(self.features, self.offset, self.frames, end, kernel)
        self.frames = end
        offset = max(0, end - front_end.stem.before) * front_end.subsampling
        self.features, self.offset = self.features[offset - self.offset :].copy(), offset
        return x

    def _positioned(self, x: Floats, is_last: bool) -> Floats:
        """Add frames; return those whose right context is complete, with positions and the encoder's first norm."""
        runtime = self.runtime
        if runtime.positions is not None:
            before, after = runtime.positions.before, runtime.positions.after
            end = np.zeros((after if is_last else 0, x.shape[1]), np.float32)
            self.embedded = np.concatenate([self.embedded, x, end])
            count = max(0, len(self.embedded) - before - after)
            if count == 0:
                return self.no_frames
            x = self.embedded[before : before + count] + runtime.positions(self.embedded, runtime.kernel)
            self.embedded = self.embedded[count:].copy()
        if runtime.input_norm is not None and len(x):
            x = runtime.input_norm(x, runtime.kernel)
        return x


class BlockStream:
    """A block, with the frames that wait for their right context and the keys and values that later frames need."""

    def __init__(self, block: Block) -> None:
        assert block.attention.radius is not None
        self.block, self.radius = block, block.attention.radius
        self.waiting: tuple[Floats, Operands] | None = None  # inputs and queries that wait, all keys and values kept
        self.received = 0  # input frames
        self.first_key = 0  # number of the frame of the first key kept

    def advance(self, x: Floats, is_last: bool, kernel: Native) -> Floats:
        """Add frames (frames, dim) of the block's input; return the frames of its output that have become final."""
        if len(x):
            operands = self.block.operands(x, self.received, self.radius, kernel)
            self.received += len(x)
            if self.waiting is None:
                self.waiting = x, operands
            else:
                self.waiting = np.concatenate([self.waiting[0], x]), _concatenate(self.waiting[1], operands)
        if self.waiting is None:
            return x
        inputs, operands = self.waiting
        done = self.received - len(inputs)
        ready = len(inputs) if is_last else max(0, len(inputs) - self.radius)
        if ready == 0:
            return x[:0]
        relative = operands.relative
        final = Operands(
            operands.query[:ready], operands.key, operands.value, None if relative is None else relative[:, :ready]
        )
        context = self.block.attention.context(final, done - self.first_key, kernel)
        y = self.block.finish(inputs[:ready], context, kernel)
        first_key = max(0, done + ready - self.radius) // ALIGNMENT * ALIGNMENT
        dropped = first_key - self.first_key
        self.first_key = first_key
        self.waiting = (
            inputs[ready:].copy(),
            Operands(
                operands.query[ready:].copy(),
                operands.key[dropped:].copy(),
                operands.value[dropped:].copy(),
                None if relative is None else relative[:, ready:].copy(),
            ),
        )
        return y

    def state_bytes(self) -> int:
        """Return the number of bytes kept."""
        if self.waiting is None:
            return 0
        inputs, operands = self.waiting
        kept: list[Array] = [inputs, operands.query, operands.key, operands.value]
        if operands.relative is not None:
            kept.append(operands.relative)
        return sum(array.nbytes for array in kept)


def _concatenate(first: Operands, second: Operands) -> Operands:
    relative = None
    if first.relative is not None and second.relative is not None:
        relative = np.concatenate([first.relative, second.relative], axis=1)
    return Operands(
        np.concatenate([first.query, second.query]),
        np.concatenate([first.key, second.key]),
        np.concatenate([first.value, second.value]),
        relative,
    )
