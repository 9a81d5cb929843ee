"""SF: requests with slots by pseudo-speakers, laid out as Audio SNIPS."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import SLOTS, request
from runners.corpora.mini.synthesis import Speaker, Synthesis, pseudo_speakers
from upstreams.files import atomic_write

ROOT = "SNIPS"
# The corpus's own speaker names, which s3prl's configuration lists by split: pseudo-speakers stand in for them.
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
_FOLDERS = {"train": "train", "dev": "valid", "test": "test"}


def plan(counts: dict[str, int], seed: int) -> list[Clip]:
    """`counts` clips a split; the label is the utterance's line in all.iob.snips.txt without its name."""
    clips: list[Clip] = []
    for split, names in SPEAKERS.items():
        voices: dict[str, list[Speaker]] = {}
        for speaker in pseudo_speakers()[split]:
            voices.setdefault(speaker.voice, []).append(speaker)
        # Every voice before a voice's second warp.
        members = [speaker for turn in zip_longest(*voices.values()) for speaker in turn if speaker]
        rng = np.random.default_rng([seed, 60, len(clips)])
        for index in range(counts[split]):
            who = int(rng.integers(len(names)))
            said = request(rng)
            source = Synthesis(members[who], " ".join(said.words), (seed, 61, len(clips)))
            folder = _FOLDERS[split]
            path = f"{ROOT}/{folder}/{names[who]}-snips-{folder}-{index}.wav"
            words = " ".join(said.words).upper()
            label = f"BOS {words} EOS\tO {' '.join(said.slots)} {said.intent}"
            clips.append(Clip(path, path, source, ("sf",), split, members[who].name, label))
    return clips


def write(root: Path, clips: list[Clip]) -> None:
    """all.iob.snips.txt and slots.txt (whose first line s3prl skips; a last newline would be an empty slot)."""
    with atomic_write(root / ROOT / "all.iob.snips.txt") as temporary:
        lines = (f"{Path(clip.path).stem} {clip.label}\n" for clip in clips)
        temporary.write_text("".join(lines), encoding="utf-8")
    with atomic_write(root / ROOT / "slots.txt") as temporary:
        temporary.write_text("\n".join(("O", *SLOTS)), encoding="utf-8")
