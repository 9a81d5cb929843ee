"""Telephone prompts of the Asterisk project: 16 kHz G.722, one professional speaker for each language."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_BIT_RATE = 64_000


def prompt_paths(folder: Path) -> list[Path]:
    """Return the prompts below `folder`, sorted, without those of the folder `silence`."""
    return sorted(path for path in folder.rglob("*.g722") if path.parent.name != "silence")


def prompt_seconds(path: Path) -> float:
    """Return the duration of a prompt in s, from its size: G.722 has a constant bit rate."""
    return path.stat().st_size * 8 / _BIT_RATE


def read_prompt(path: Path) -> np.ndarray:
    """Return the waveform of a G.722 file, (samples,) float32 in [-1, 1] at 16 kHz."""
    from G722 import G722

    decoded = G722(16_000, _BIT_RATE).decode(path.read_bytes())
    return np.asarray(decoded, dtype=np.float32) / 32768
