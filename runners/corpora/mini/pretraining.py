"""The pre-training audio and its manifests: all speech that no dev or test split of a task holds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runners.corpora.mini import asterisk
from runners.corpora.mini.clips import Clip, Prompt
from runners.corpora.mini.sources import PROMPTS
from runners.corpora.mini.speech import SHORTEST, Utterance, shuffled
from upstreams.files import atomic_write

_LONGEST = 30.0
_VALID_SHARE = 0.03
_VALID_SECONDS = 600.0


def prompt_utterances(sources: Path) -> list[Utterance]:
    """The telephone prompts of every language."""
    found = []
    for package in PROMPTS:
        folder = package.path(sources)
        for path in asterisk.prompt_paths(folder):
            seconds = asterisk.prompt_seconds(path)
            name = path.relative_to(folder).with_suffix("").as_posix().replace("/", "-")
            if SHORTEST <= seconds <= _LONGEST:
                found.append(
                    Utterance(
                        f"prompts/{folder.name}/{name}", Prompt(path), seconds, folder.name, "prompts", None, None
                    )
                )
    return found


def held_out(utterances: list[Utterance], clips: list[Clip], sid_sessions: dict[tuple[str, str], str]) -> set[str]:
    """The recordings that pre-training must not hear.

    Those of a task's dev or test clips; all others by a speaker that LibriSpeech's layout holds out; all others of a
    speaker's held-out dialogue.
    """
    held = {clip.recording for clip in clips if clip.split in ("dev", "test")}
    held |= {u.recording for u in utterances if u.role in ("dev", "test")}
    held |= {u.recording for u in utterances if sid_sessions.get((u.speaker or "", u.session)) in ("dev", "test")}
    return held


def plan(utterances: list[Utterance], task_clips: list[Clip], held: set[str], seconds: float, seed: int) -> list[Clip]:
    """What pre-training hears: at most `seconds` of `utterances`, and every train clip of KS, IC and SF.

    A recording that a task has on disk already is heard from there; the rest gets clips below pretrain/. All five
    folds of ER test some session, so ER is left out.
    """
    on_disk = {clip.recording: clip for clip in task_clips}
    heard = []
    total = 0.0
    for utterance in shuffled((u for u in utterances if u.recording not in held), [seed, 80]):
        if total >= seconds:
            break
        total += utterance.seconds
        heard.append(
            on_disk.get(utterance.recording)
            or Clip(
                f"pretrain/{utterance.recording}.wav",
                utterance.recording,
                utterance.source,
                ("pretrain",),
                "train",
                utterance.speaker or "",
            )
        )
    heard += [clip for clip in task_clips if clip.split == "train" and clip.tasks[0] in ("ks", "ic", "sf")]
    return heard


def split_valid(heard: list[Clip], samples: dict[str, int], seed: int) -> dict[str, list[Clip]]:
    """The clips of train.tsv and valid.tsv: a random 3 % of the files, 10 minutes at most, validates."""
    order = np.random.default_rng([seed, 81]).permutation(len(heard))
    splits: dict[str, list[Clip]] = {"train": [], "valid": []}
    left = min(_VALID_SECONDS * 16_000, _VALID_SHARE * sum(samples[clip.path] for clip in heard))
    for index in order:
        split = "valid" if left > 0 else "train"
        left -= samples[heard[index].path]
        splits[split].append(heard[index])
    return splits


def write(root: Path, location: Path, splits: dict[str, list[Clip]], samples: dict[str, int]) -> None:
    """manifest/{train,valid}.tsv below `root`: first line the absolute `location` of the finished corpora."""
    for split, clips in splits.items():
        rows = sorted(f"{clip.path}\t{samples[clip.path]}\n" for clip in clips)
        with atomic_write(root / "manifest" / f"{split}.tsv") as temporary:
            temporary.write_text(f"{location}\n" + "".join(rows), encoding="utf-8")
