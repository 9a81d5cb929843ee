"""Hidden states of a frozen upstream, computed once an utterance and kept in memory; waveforms likewise.

Training a SUPERB head passes over the same waveforms many times, and the frozen upstream gives the same
hidden states each time: for most tasks they are nearly all of a step's cost.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class FeatureStore(nn.Module):
    """Stands in for a frozen s3prl upstream; repeated waveforms cost a copy instead of a forward.

    What it returns is what the upstream returns for the batch: utterances are keyed by their samples, kept in
    fp32 up to their last frame that is not zero, and padded with zeros to the batch's longest. That holds for
    upstreams whose features of an utterance do not depend on its batch and are zero behind its end: this
    project's, and s3prl's Kaldi baselines (fbank, fbank_no_cmvn), which work utterance by utterance.

    At most `max_bytes` of hidden states are kept. When they are reached, what is in stays and the rest is
    computed anew: training visits utterances in shuffled epochs, where throwing out the oldest would throw
    out the next one needed. Random crops of a waveform are other waveforms: they miss, and are right all the
    same.
    """

    def __init__(self, upstream: nn.Module, max_bytes: int) -> None:
        super().__init__()
        self.upstream = upstream
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._kept: dict[bytes, Tensor] = {}

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame, as the upstream says."""
        return self.upstream.get_downsample_rates(key)  # type: ignore[operator]

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """List of (samples,) waveforms -> {"hidden_states": [(batch, frames, dim), ...], "last_hidden_state": ...}.

        Raises RuntimeError in train mode: features of an upstream that learns or drops out must not be kept.
        """
        if self.training:
            raise RuntimeError("a feature store serves a frozen upstream in eval mode, never fine-tuning")
        keys = [hashlib.sha256(wav.detach().cpu().contiguous().numpy().tobytes()).digest() for wav in wavs]
        states = {key: self._kept[key] for key in keys if key in self._kept}
        self.hits += sum(key in states for key in keys)

        missing = {key: wav for key, wav in zip(keys, wavs, strict=True) if key not in states}
        self.misses += len(missing)
        if missing:
            states |= self._compute(missing)

        # Zeros at the end of the longest utterance's own features are as good as padding, but an all but silent
        # utterance must not end up shorter than s3prl expects of its samples.
        expected = max(len(wav) for wav in wavs) // self.get_downsample_rates("hidden_states") - 3
        frames = max(expected, *(states[key].shape[1] for key in keys))
        first = states[keys[0]]
        batch = first.new_zeros(first.shape[0], len(keys), frames, first.shape[2])
        for row, key in enumerate(keys):
            batch[:, row, : states[key].shape[1]] = states[key]
        hidden_states = list(batch.to(wavs[0].device).unbind(0))
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def _compute(self, waveforms: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        """Hidden states (layers, frames, dim) on the CPU, by key; kept as far as there is room."""
        layers = self.upstream(list(waveforms.values()))["hidden_states"]
        stacked = torch.stack(list(layers), dim=1).cpu()  # (batch, layers, frames, dim)
        states = {}
        for key, padded in zip(waveforms, stacked, strict=True):
            used = padded.ne(0).any(2).any(0).nonzero()
            # A copy, as a view of the batch would keep the whole batch alive.
            state = padded[:, : int(used[-1]) + 1 if len(used) else 1].clone()
            states[key] = state
            size = state.numel() * state.element_size()
            if self.bytes + size <= self.max_bytes:
                self._kept[key] = state
                self.bytes += size
        return states


@contextlib.contextmanager
def waveforms_kept(max_bytes: int) -> Iterator[None]:
    """Inside the block, soundfile.read decodes a whole file once and then copies it, for up to `max_bytes` of samples.

    When the hidden states come from a store, decoding the audio anew for every batch is a third of a step.
    """
    import soundfile

    read = soundfile.read
    kept: dict[tuple[str, str], tuple[np.ndarray, int]] = {}
    room = max_bytes

    def read_once(file: Any, frames: int = -1, start: int = 0, dtype: str = "float64", **options: Any) -> Any:
        nonlocal room
        if frames != -1 or start != 0 or not isinstance(file, str | Path):
            return read(file, frames, start, dtype=dtype, **options)
        key = (str(file), f"{dtype} {sorted(options.items())}")
        if key not in kept:
            samples, rate = read(file, dtype=dtype, **options)
            if samples.nbytes > room:
                return samples, rate
            kept[key] = samples, rate
            room -= samples.nbytes
        samples, rate = kept[key]
        return samples.copy(), rate

    soundfile.read = read_once
    try:
        yield
    finally:
        soundfile.read = read
