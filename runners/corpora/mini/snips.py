"""SF: requests with slots by pseudo-speakers in the layout of Audio SNIPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import SLOTS, request
from runners.corpora.mini.speakers import pseudo_speakers
from runners.corpora.mini.synthesis import Synthesis
from runners.tasks import TASKS, read_config
from upstreams.files import atomic_write

ROOT = "SNIPS"
_FOLDERS = {"train": "train", "dev": "valid", "test": "test"}


def plan(counts: dict[str, int], seed: int) -> list[Clip]:
    """Plan `counts[split]` clips for each split. A label is the utterance's line in all.iob.snips.txt without its id.

    Several pseudo-speakers share the name of one of the corpus's speakers, which the packaged configuration lists for
    each split.
    """
    corpus = read_config(TASKS["sf"].config_file, None)["downstream_expert"]["corpus"]
    clips: list[Clip] = []
    for split, folder in _FOLDERS.items():
        names = corpus[f"{folder}_speakers"]
        speakers = pseudo_speakers()[split]
        rng = np.random.default_rng([seed, 60, len(clips)])
        for index in range(counts[split]):
            who = int(rng.integers(len(speakers)))
            speaker, name = speakers[who], names[who % len(names)]
            chosen = request(rng)
            source = Synthesis(speaker, " ".join(chosen.words), (seed, 61, len(clips)))
            path = f"{ROOT}/{folder}/{name}-snips-{folder}-{index}.wav"
            words = " ".join(chosen.words).upper()
            label = f"BOS {words} EOS\tO {' '.join(chosen.slots)} {chosen.intent}"
            clips.append(Clip(path, path, source, ("sf",), split, speaker.name, label))
    return clips


def write(root: Path, clips: list[Clip]) -> None:
    """Write all.iob.snips.txt and slots.txt. In the latter s3prl skips line 1 and takes a final newline for a slot."""
    with atomic_write(root / ROOT / "all.iob.snips.txt") as temporary:
        lines = (f"{Path(clip.path).stem} {clip.label}\n" for clip in clips)
        temporary.write_text("".join(lines), encoding="utf-8")
    with atomic_write(root / ROOT / "slots.txt") as temporary:
        temporary.write_text("\n".join(("O", *SLOTS)), encoding="utf-8")
