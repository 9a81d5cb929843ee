"""SID: the game's characters in the layout of VoxCeleb1.

A dialogue of a speaker takes the place of a video, and is in one split only.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.speech import Utterance, round_robin, shuffled, take
from upstreams.files import atomic_write

_MIN_UTTERANCES = 50  # of a speaker
_SHORTEST = 1.0  # s
# Wanted number of utterances in a speaker's test dialogues, and in its dev dialogues.
_WANTED = {"test": 30, "dev": 8}
_AT_LEAST = {"train": 2, "dev": 0, "test": 1}
_LIST_NUMBERS = {"train": 1, "dev": 2, "test": 3}


def split_sessions(utterances: list[Utterance]) -> dict[tuple[str, str], str]:
    """Return (speaker, session) -> split, for the speakers with at least 50 utterances and two sessions.

    A speaker's largest session is for training. Of the others, the subset whose size is closest to 30 utterances is
    for test; of the remaining ones, the subset closest to 8 utterances is for dev; the rest is for training.
    """
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for utterance in utterances:
        if utterance.speaker is not None and utterance.seconds >= _SHORTEST:
            counts[utterance.speaker][utterance.session] += 1
    splits = {}
    for speaker, sessions in sorted(counts.items()):
        if len(sessions) < 2 or sum(sessions.values()) < _MIN_UTTERANCES:
            continue
        remaining = dict(sorted(sessions.items(), key=lambda item: (item[1], item[0]))[:-1])
        splits.update({(speaker, session): "train" for session in sessions})
        for split, wanted in _WANTED.items():
            chosen = _closest_subset(remaining, wanted)
            splits.update({(speaker, session): split for session in chosen})
            remaining = {session: count for session, count in remaining.items() if session not in chosen}
    return splits


def _closest_subset(counts: dict[str, int], wanted: int) -> tuple[str, ...]:
    """Return the names whose counts have the sum closest to `wanted`: at least one name, unless `counts` is empty."""
    sums: dict[int, tuple[str, ...]] = {0: ()}
    for name, count in counts.items():
        for total, names in list(sums.items()):
            if total < wanted:
                sums.setdefault(total + count, (*names, name))
    return min((abs(total - wanted), total, names) for total, names in sums.items() if total or not counts)[2]


def plan(
    utterances: list[Utterance], seconds: dict[str, float], seed: int
) -> tuple[list[Clip], dict[tuple[str, str], str]]:
    """Return clips of about `seconds[split]` for each split, balanced over speakers, and the split of each session."""
    sessions = split_sessions(utterances)
    speakers = sorted({speaker for speaker, _ in sessions})
    clips: list[Clip] = []
    for split in ("train", "dev", "test"):
        candidates = [
            u for u in utterances if u.seconds >= _SHORTEST and sessions.get((u.speaker or "", u.session)) == split
        ]
        ordered = round_robin(shuffled(candidates, [seed, 30]))
        for utterance in take(ordered, seconds[split], _AT_LEAST[split] * len(speakers)):
            assert utterance.speaker is not None
            index = speakers.index(utterance.speaker)
            # As in VoxCeleb1, a few speakers are in the other folder. The split is in the list, not in the folder.
            folder = "test" if index >= len(speakers) - 2 else "dev"
            number = sum(clip.speaker == utterance.speaker for clip in clips) + 1
            clips.append(
                Clip(
                    f"VoxCeleb1/{folder}/wav/id{10001 + index}/{utterance.session}/{number:05d}.wav",
                    utterance.recording,
                    utterance.source,
                    ("sid",),
                    split,
                    utterance.speaker,
                    f"id{10001 + index}",
                )
            )
    return clips, sessions


def write(root: Path, clips: list[Clip]) -> None:
    """Write VoxCeleb1/veri_test_class.txt with lines `1|2|3 <speaker>/<video>/<file>` for train, dev and test."""
    lines = sorted((clip.path.split("/wav/")[1], _LIST_NUMBERS[clip.split]) for clip in clips)
    with atomic_write(root / "VoxCeleb1" / "veri_test_class.txt") as temporary:
        temporary.write_text("".join(f"{number} {path}\n" for path, number in lines), encoding="utf-8")
