"""ER: sentences with synthetic emotion in the layout of IEMOCAP.

A label names the prosody settings that imitate an emotion. No listener has judged the clips.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import free_sentence
from runners.corpora.mini.speakers import emotional_speakers
from runners.corpora.mini.synthesis import EMOTION_PROSODIES, Synthesis
from runners.corpora.published import EMOTIONS
from upstreams.files import atomic_write

ROOT = "IEMOCAP"


def plan(counts: dict[str, int], seed: int) -> list[Clip]:
    """Plan `counts["first"]` clips of session 1, the test set of fold 1, and `counts["others"]` of each other session.

    A session has two pseudo-speakers, who are in no other session. The split of a clip is its session.
    """
    clips = []
    for session, speakers in enumerate(emotional_speakers(), start=1):
        rng = np.random.default_rng([seed, 70, session])
        for index in range(counts["first" if session == 1 else "others"]):
            label = list(EMOTIONS)[index % len(EMOTIONS)]
            which = index // len(EMOTIONS) % 2
            speaker = speakers[which]
            letter = "FM"[which]
            dialogue = f"Ses{session:02d}{letter}_impro{index // 40 + 1:02d}"
            path = f"{ROOT}/Session{session}/sentences/wav/{dialogue}/{dialogue}_{letter}{index:03d}.wav"
            source = Synthesis(speaker, free_sentence(rng), (seed, 71, session, index), EMOTION_PROSODIES[label])
            clips.append(Clip(path, path, source, ("er",), f"session{session}", speaker.name, label))
    return clips


def write(root: Path, clips: list[Clip]) -> None:
    """Write meta_data/Session<N>/{train,test}_meta_data.json: session N for test, the other four for training."""
    for session in range(1, len(emotional_speakers()) + 1):
        for name, tests in (("test", True), ("train", False)):
            rows = [
                {
                    "path": clip.path.removeprefix(f"{ROOT}/"),
                    "label": clip.label,
                    "speaker": Path(clip.path).name[:6],
                }
                for clip in clips
                if (clip.split == f"session{session}") == tests
            ]
            path = root / ROOT / "meta_data" / f"Session{session}" / f"{name}_meta_data.json"
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps({"labels": EMOTIONS, "meta_data": rows}), encoding="utf-8")
