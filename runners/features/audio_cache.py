"""Decoded audio cached in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

CACHE_BYTES = 1 << 29  # 2.3 hours of fp32 samples


@contextlib.contextmanager
def cached_audio(max_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """Inside the block, soundfile.read decodes a whole file once and copies it afterwards, up to `max_bytes` in all.

    If hidden states come from a store, decoding the audio again for every batch takes a third of a step. Reads in the
    workers of a data loader are not cached, as those processes end with the epoch.
    """
    import soundfile

    read = soundfile.read
    cache: dict[tuple[str, str], tuple[np.ndarray, int]] = {}
    room = max_bytes

    def read_once(file: Any, frames: int = -1, start: int = 0, dtype: str = "float64", **options: Any) -> Any:
        nonlocal room
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker or frames != -1 or start != 0 or not isinstance(file, str | Path):
            return read(file, frames, start, dtype=dtype, **options)
        key = (str(file), f"{dtype} {sorted(options.items())}")
        if key not in cache:
            samples, rate = read(file, dtype=dtype, **options)
            if samples.nbytes > room:
                return samples, rate
            cache[key] = samples, rate
            room -= samples.nbytes
        samples, rate = cache[key]
        return samples.copy(), rate

    soundfile.read = read_once
    try:
        yield
    finally:
        soundfile.read = read
