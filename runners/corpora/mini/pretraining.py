"""The pre-training audio and its manifests: all speech that is in no dev or test split of a task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runners.corpora.mini import asterisk
from runners.corpora.mini.clips import Clip, Prompt
from runners.corpora.mini.sources import PROMPTS
from runners.corpora.mini.speech import SHORTEST, Utterance, shuffled
from upstreams.config import SAMPLE_RATE
from upstreams.files import atomic_write

_LONGEST = 30.0
_VALID_SHARE = 0.03
_VALID_SECONDS = 600.0


def prompt_utterances(sources: Path) -> list[Utterance]:
    """Return the telephone prompts of every language."""
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
    """Return the recordings that pre-training must not use.

    These are the recordings of the tasks' dev and test clips, all recordings of the dialogues in SID's dev and test
    splits, and all recordings of the speakers in any other dev or test split.
    """
    speakers = {clip.speaker for clip in clips if clip.split in ("dev", "test") and "sid" not in clip.tasks}
    held = {clip.recording for clip in clips if clip.split in ("dev", "test")}
    held |= {u.recording for u in utterances if u.role in ("dev", "test") or u.speaker in speakers}
    held |= {u.recording for u in utterances if sid_sessions.get((u.speaker or "", u.session)) in ("dev", "test")}
    return held


def plan(utterances: list[Utterance], task_clips: list[Clip], held: set[str], seconds: float, seed: int) -> list[Clip]:
    """Plan the pre-training clips: at most `seconds` of `utterances`, and every training clip of ASR, KS, IC and SF.

    A recording that is a clip of a task is used from there, the others become clips below pretrain/. ER is left out, as
    each of its sessions is the test set of a fold.
    """
    on_disk = {clip.recording: clip for clip in task_clips}
    clips = []
    total = 0.0
    for utterance in shuffled((u for u in utterances if u.recording not in held), [seed, 80]):
        if total >= seconds:
            break
        total += utterance.seconds
        clips.append(
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
    clips += [clip for clip in task_clips if clip.split == "train" and clip.tasks[0] in ("asr", "ks", "ic", "sf")]
    return clips


def split_valid(clips: list[Clip], samples: dict[str, int], seed: int) -> dict[str, list[Clip]]:
    """Return the clips of train.tsv and of valid.tsv, which gets random 3 % of the audio, at most 10 min."""
    order = np.random.default_rng([seed, 81]).permutation(len(clips))
    splits: dict[str, list[Clip]] = {"train": [], "valid": []}
    remaining = min(_VALID_SECONDS * SAMPLE_RATE, _VALID_SHARE * sum(samples[clip.path] for clip in clips))
    for index in order:
        split = "valid" if remaining > 0 else "train"
        remaining -= samples[clips[index].path]
        splits[split].append(clips[index])
    return splits


def write(root: Path, location: Path, splits: dict[str, list[Clip]], samples: dict[str, int]) -> None:
    """Write manifest/{train,valid}.tsv below `root`. Line 1 is `location`, the path of the finished corpora."""
    for split, clips in splits.items():
        rows = sorted(f"{clip.path}\t{samples[clip.path]}\n" for clip in clips)
        with atomic_write(root / "manifest" / f"{split}.tsv") as temporary:
            temporary.write_text(f"{location}\n" + "".join(rows), encoding="utf-8")
