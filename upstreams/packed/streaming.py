"""Streaming: the hidden states of a Sparseformer while the waveform arrives. Imports no torch.

Every part of a Sparseformer looks a bounded number of frames ahead. A frame of hidden state l is therefore final, equal
to the frame of the whole utterance, once `Stream.samples_needed(l, frame)` samples have arrived. The memory kept
between calls is bounded too, however long the utterance.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import ArrayLike

from upstreams.errors import UserError
from upstreams.packed.library import Floats, address, call, load
from upstreams.packed.runtime import Runtime, checked_waveform


class Stream:
    """One utterance, fed in chunks of any size.

    Raises UserError if the model needs the whole utterance: for attention over all frames, or for a spectrogram that is
    normalised by its own statistics.
    """

    def __init__(self, runtime: Runtime) -> None:
        config = runtime.config
        if config.encoder.kind != "sparseformer":
            raise UserError(f"a {config.encoder.kind} cannot be streamed: its attention sees the whole utterance")
        if config.front_end.kind != "log_mel":
            raise UserError("a waveform front-end cannot be streamed: it needs the whole utterance")
        if config.front_end.normalisation == "utterance":
            raise UserError(
                "a log-mel normalised by the utterance cannot be streamed: it needs statistics of the whole utterance"
            )
        library, _ = load()
        assert library is not None
        self.runtime, self.library, self.handle = runtime, library, ctypes.c_void_p()
        with runtime.lock:
            call("stream_open", runtime.session.handle, self.handle)
        self.final = [0] * (config.encoder.layers + 1)  # frames returned of each hidden state
        self.is_finished = False

    def __del__(self) -> None:
        if hasattr(self, "handle") and self.handle:
            self.library.superbit_stream_close(self.handle)

    def samples_needed(self, layer: int, frame: int) -> int:
        """Return the number of samples after which a frame of hidden state `layer` is final without `flush`."""
        layer = self.runtime.config.encoder.blocks_to_run(layer)
        return self.library.superbit_stream_samples_needed(self.handle, layer, frame)

    def feed(self, chunk: ArrayLike) -> list[Floats]:
        """Add samples (samples,); return the frames of each hidden state that have become final, (frames, dim).

        A call that runs out of memory, or whose samples are so large that NaN arises, ends the stream.
        """
        if self.is_finished:
            raise UserError("the stream was flushed: make a new stream for another utterance")
        samples = checked_waveform(chunk)
        with self.runtime.lock:
            call("stream_feed", self.handle, address(samples), len(samples))
            return self._new_frames()

    def flush(self) -> list[Floats]:
        """End the utterance; return the remaining frames of each hidden state, (frames, dim)."""
        if self.is_finished:
            raise UserError("the stream was already flushed")
        self.is_finished = True
        with self.runtime.lock:
            call("stream_flush", self.handle)
            return self._new_frames()

    def state_bytes(self) -> int:
        """Return the number of bytes kept between calls."""
        return self.library.superbit_stream_bytes(self.handle)

    def _new_frames(self) -> list[Floats]:
        dim, states = self.runtime.config.encoder.dim, []
        for layer in range(len(self.final)):
            count = ctypes.c_int64()
            start = self.library.superbit_stream_frames(self.handle, layer, count)
            state = np.empty((count.value, dim), np.float32)
            if state.size:
                ctypes.memmove(address(state), start, state.nbytes)
            self.final[layer] += count.value
            states.append(state)
        return states
