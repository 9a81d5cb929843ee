"""A tiny corpus for pre-training: harmonic tones of varying pitch with noise, so that labels are predictable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def write_corpus(root: Path, utterances: int = 12, seconds: float = 1.5, corrupt: tuple[int, ...] = ()) -> Path:
    """Write wav files and their manifest; return the manifest. corrupt: numbers of the files that hold no audio."""
    random = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    lines = [str(root)]
    for index in range(utterances):
        samples = int(16_000 * seconds * random.uniform(0.6, 1.4))
        pitch = np.cumsum(120 + 80 * np.sin(np.arange(samples) / random.uniform(900, 4000))) / 16_000
        audio = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 8)) + random.normal(0, 0.1, samples)
        path = root / f"{index}.wav"
        soundfile.write(path, (0.1 * audio).astype(np.float32), 16_000, subtype="PCM_16")
        if index in corrupt:
            path.write_bytes(b"RIFF but not audio")
        lines.append(f"{index}.wav\t{samples}")
    manifest = root / "train.tsv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


RECIPE = """
model: sparseformer_dn_mini
iterations:
  - {layer: 0, clusters: 8, steps: %d}
  - {layer: 4, clusters: 10, steps: %d}
batch_seconds: 6
crop_seconds: 1.0
lr: 0.002
cluster_fraction: 1.0
"""


def write_recipe(path: Path, first: int = 6, second: int = 4) -> Path:
    """Write a recipe of a few steps for the tiny corpus; return its path."""
    path.write_text(RECIPE % (first, second))
    return path
