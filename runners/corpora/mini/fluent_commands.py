"""IC: commands by pseudo-speakers in the layout of Fluent Speech Commands."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import INTENTS, command
from runners.corpora.mini.speakers import pseudo_speakers
from runners.corpora.mini.synthesis import Synthesis
from upstreams.files import atomic_write

ROOT = "fluent_speech_commands_dataset"
_FILES = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}


def plan(counts: dict[str, int], seed: int) -> list[Clip]:
    """Plan `counts[split]` clips for each split, with all intents equally frequent.

    A clip's label is `transcription|action|object|location`.
    """
    clips: list[Clip] = []
    for split, speakers in pseudo_speakers().items():
        rng = np.random.default_rng([seed, 50, len(clips)])
        # s3prl builds its label maps from the training split, which therefore needs every intent.
        count = max(counts[split], len(INTENTS)) if split == "train" else counts[split]
        for index in range(count):
            intent = INTENTS[index % len(INTENTS)]
            speaker = speakers[int(rng.integers(len(speakers)))]
            text = command(intent, rng)
            source = Synthesis(speaker, text, (seed, 51, len(clips)))
            path = f"{ROOT}/wavs/speakers/{speaker.name}/{split}-{index:05d}.wav"
            label = "|".join((text, *intent))
            clips.append(Clip(path, path, source, ("ic",), split, speaker.name, label))
    return clips


def write(root: Path, clips: list[Clip]) -> None:
    """Write data/{train,valid,test}_data.csv."""
    for split, name in _FILES.items():
        with atomic_write(root / ROOT / "data" / name) as temporary, temporary.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["", "path", "speakerId", "transcription", "action", "object", "location"])
            for number, clip in enumerate(clip for clip in clips if clip.split == split):
                rows.writerow([number, clip.path.removeprefix(f"{ROOT}/"), clip.speaker, *clip.label.split("|")])
