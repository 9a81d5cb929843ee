"""SID: the game's characters laid out as VoxCeleb1; a speaker's dialogue is its video, and is in one split only."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.speech import Utterance, round_robin, shuffled, take
from upstreams.files import atomic_write

# Fewer utterances than this do not make a speaker.
_UTTERANCES = 50
_SHORTEST = 1.0
# Utterances that a speaker's test and dev dialogues should hold together.
_HELD = {"test": 30, "dev": 8}
_AT_LEAST = {"train": 2, "dev": 0, "test": 1}
_LIST_NUMBERS = {"train": 1, "dev": 2, "test": 3}


def split_sessions(utterances: list[Utterance]) -> dict[tuple[str, str], str]:
    """The split of each (speaker, session) of the speakers with enough utterances in two sessions or more.

    A speaker's largest session trains; of the others, those that hold nearest to 30 utterances together test, then
    those nearest to 8 are dev, if any are left; the rest train.
    """
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for utterance in utterances:
        if utterance.speaker is not None and utterance.seconds >= _SHORTEST:
            counts[utterance.speaker][utterance.session] += 1
    splits = {}
    for speaker, sessions in sorted(counts.items()):
        if len(sessions) < 2 or sum(sessions.values()) < _UTTERANCES:
            continue
        left = dict(sorted(sessions.items(), key=lambda item: (item[1], item[0]))[:-1])
        splits.update({(speaker, session): "train" for session in sessions})
        for split, wanted in _HELD.items():
            chosen = _nearest_subset(left, wanted)
            splits.update({(speaker, session): split for session in chosen})
            left = {session: count for session, count in left.items() if session not in chosen}
    return splits


def _nearest_subset(counts: dict[str, int], wanted: int) -> tuple[str, ...]:
    """The names whose counts sum nearest to `wanted` (none where that is nearest and `counts` is empty)."""
    sums: dict[int, tuple[str, ...]] = {0: ()}
    for name, count in counts.items():
        for total, names in list(sums.items()):
            if total < wanted:
                sums.setdefault(total + count, (*names, name))
    return min((abs(total - wanted), total, names) for total, names in sums.items() if total or not counts)[2]


def plan(
    utterances: list[Utterance], seconds: dict[str, float], seed: int
) -> tuple[list[Clip], dict[tuple[str, str], str]]:
    """Clips of about `seconds` a split with the speakers in even shares, and the split of every session."""
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
            # As in VoxCeleb1 a few speakers lie in the other folder; the list below decides, not the folder.
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
    """VoxCeleb1/veri_test_class.txt: `1|2|3 <speaker>/<video>/<file>` for train, dev and test."""
    lines = sorted((clip.path.split("/wav/")[1], _LIST_NUMBERS[clip.split]) for clip in clips)
    with atomic_write(root / "VoxCeleb1" / "veri_test_class.txt") as temporary:
        temporary.write_text("".join(f"{number} {path}\n" for path, number in lines), encoding="utf-8")
