"""`superbit corpus mini`: the seven tasks' corpora in their published layouts, from speech that can be installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runners.corpora.mini import (
    fluent_commands,
    iemocap,
    librispeech,
    pretraining,
    snips,
    speech,
    speech_commands,
    voxceleb,
)
from runners.corpora.mini import sources as packages
from runners.corpora.mini.clips import UNFINISHED, Clip, write_clips
from runners.corpora.mini.synthesis import SAMPLE_RATE
from runners.corpora.mini.text import load_lexicon
from upstreams.errors import UserError
from upstreams.files import atomic_write

# The task audio that the sizes below add up to; they scale with the hours asked for.
DEFAULT_HOURS = 5.0
_MINUTES = {
    "librispeech": {"train": 40.0, "dev": 4.0, "test": 6.0},
    "voxceleb": {"train": 33.0, "dev": 3.0, "test": 27.0},
}
_UTTERANCES = {
    "speech_commands": {"train": 1500, "dev": 180, "test": 540},
    "fluent_commands": {"train": 1116, "dev": 124, "test": 496},
    "snips": {"train": 860, "dev": 100, "test": 300},
    "iemocap": {"first": 240, "others": 140},
}
# However small the corpora, a split has as many utterances.
_AT_LEAST = {
    "speech_commands": {"train": 40, "dev": 12, "test": 12},
    "fluent_commands": {"train": 31, "dev": 4, "test": 8},
    "snips": {"train": 32, "dev": 4, "test": 8},
    "iemocap": {"first": 8, "others": 8},
}
_PRETRAIN_PER_TASK_HOUR = 1.5
_LAYOUT = 1  # raised when the same parameters give other files
_LIBRARIES = ("py_nanotts", "pocketsphinx", "G722")
_ER_LABEL = "synthetic: prosody settings that imitate neutral, happy, angry and sad"


def build_mini(out: Path, hours: float, seed: int, sources: Path, apt: bool) -> dict[str, Any]:
    """Build the embedded corpora below `out` and return what its corpus.json holds.

    out: the corpora root; it appears, whole, when everything is written. hours: task audio to aim at; recorded speech
    ends at what there is. sources: where the Debian packages' files are kept. apt: False builds from synthesis alone,
    as does a system without apt or network. The same hours, seed and sources give the same files, bit for bit.

    A build that is there already with the same parameters is returned at once; one that was interrupted goes on.
    Raises UserError for bad parameters, an `out` that holds something else, or a source with a wrong checksum.
    """
    if not 0 < hours < float("inf"):
        raise UserError(f"hours is {hours}: it should be more than 0, for example {DEFAULT_HOURS:g}")
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    out, sources = out.resolve(), sources.resolve()
    request = {"hours": float(hours), "seed": seed, "apt": apt, "layout": _LAYOUT}
    done = _finished(out, request)
    if done is not None:
        return done
    lacking = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"{', '.join(lacking)} not installed: `pip install superbit[corpora]` brings what is needed")
    container: Path | None = None
    if apt:
        try:
            packages.obtain(sources)
            container = packages.QUEEN.path(sources)
        except packages.Unavailable as reason:
            print(f"superbit: no recorded speech ({reason}); all tasks use synthesis", file=sys.stderr)
    else:
        print("superbit: recorded speech not asked for; all tasks use synthesis", file=sys.stderr)
    partial = out.with_name(f".{out.name}.partial")
    _start(partial, {**request, "recorded": container is not None})
    summary = _build(partial, out, hours, seed, sources, container)
    summary = {"complete": True, "parameters": request, **summary}
    with atomic_write(partial / "corpus.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for left in partial.rglob(f".*{UNFINISHED}"):  # by a build that was killed
        left.unlink()
    (partial / "parameters.json").unlink()
    os.sync()
    if out.exists():
        out.rmdir()  # empty, as _finished found
    partial.rename(out)
    return summary


def _finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a finished build with the same parameters; None where `out` is free."""
    if not out.exists():
        return None
    path = out / "corpus.json"
    if not path.is_file():
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise UserError(f"{out} is not an embedded corpus and not empty: name a new folder")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = summary["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what `superbit corpus mini` writes: name a new folder") from error
    if found != request:
        differing = ", ".join(
            f"{key} {found.get(key)} (asked: {value})" for key, value in request.items() if found.get(key) != value
        )
        raise UserError(f"{out} holds corpora of other parameters: {differing}; remove it or name a new folder")
    return summary


def _start(partial: Path, parameters: dict[str, Any]) -> None:
    """Make the folder that the build works in; what an interrupted build of other parameters left is removed."""
    path = partial / "parameters.json"
    if partial.exists() and not (path.is_file() and path.read_text(encoding="utf-8") == json.dumps(parameters)):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(parameters), encoding="utf-8")


def _build(partial: Path, out: Path, hours: float, seed: int, sources: Path, container: Path | None) -> dict[str, Any]:
    """Write everything but corpus.json below `partial`; return the summary of what was written."""
    scale = hours / DEFAULT_HOURS
    seconds = {
        name: {split: minutes * 60 * scale for split, minutes in splits.items()} for name, splits in _MINUTES.items()
    }
    counts = {
        name: {split: max(round(n * scale), _AT_LEAST[name][split]) for split, n in splits.items()}
        for name, splits in _UTTERANCES.items()
    }
    lexicon = load_lexicon()
    if container is None:
        pool = hours * (1 + _PRETRAIN_PER_TASK_HOUR)
        utterances = speech.synthetic_utterances(seed, pool, lexicon)
        prompts = []
    else:
        utterances = speech.game_utterances(container, lexicon)
        prompts = pretraining.prompt_utterances(sources)
    read = librispeech.plan(utterances, seconds["librispeech"], seed)
    characters, sessions = voxceleb.plan(utterances, seconds["voxceleb"], seed)
    keywords = speech_commands.plan(counts["speech_commands"], seed)
    commands = fluent_commands.plan(counts["fluent_commands"], seed)
    requests = snips.plan(counts["snips"], seed)
    emotions = iemocap.plan(counts["iemocap"], seed)
    task_clips = [*read, *characters, *keywords, *commands, *requests, *emotions]
    held = pretraining.held_out(utterances, task_clips, sessions)
    target = hours * 3600 * _PRETRAIN_PER_TASK_HOUR
    heard = pretraining.plan([*utterances, *prompts], task_clips, held, target, seed)

    samples = write_clips(partial, dict.fromkeys([*task_clips, *heard]))
    librispeech.write(partial, read, samples, lexicon)
    voxceleb.write(partial, characters)
    fluent_commands.write(partial, commands)
    snips.write(partial, requests)
    iemocap.write(partial, emotions)
    splits = pretraining.split_valid(heard, samples, seed)
    pretraining.write(partial, out, splits, samples)

    kind = "synthetic" if container is None else "real"
    tasks = {}
    for task in ("asr", "pr", "ks", "sid", "er", "ic", "sf"):
        clips = [clip for clip in task_clips if task in clip.tasks]
        tasks[task] = {
            "speech": kind if task in ("asr", "pr", "sid") else "synthetic",
            "label": _ER_LABEL if task == "er" else "as spoken",
            "splits": {
                split: _count((clip for clip in clips if clip.split == split), samples)
                for split in dict.fromkeys(clip.split for clip in clips)
            },
        }
    return {
        "sources": {package.name: package.sha256 for package in packages.PACKAGES} if container else {},
        "task_hours": round(sum(samples[clip.path] for clip in task_clips) / SAMPLE_RATE / 3600, 3),
        "tasks": tasks,
        "pretraining": {split: _count(clips, samples) for split, clips in splits.items()},
    }


def _count(clips: Iterable[Clip], samples: dict[str, int]) -> dict[str, float]:
    clips = list(clips)
    return {
        "utterances": len(clips),
        "hours": round(sum(samples[clip.path] for clip in clips) / SAMPLE_RATE / 3600, 4),
        "speakers": len({clip.speaker for clip in clips if clip.speaker}),
    }
