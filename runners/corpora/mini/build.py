"""`superbit corpus mini`: build the seven tasks' corpora from speech that package managers install."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
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
from runners.corpora.mini.clips import Clip, write_clips
from runners.corpora.mini.text import load_lexicon
from runners.tasks import SEVEN
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import UNFINISHED, atomic_write, json_text
from upstreams.versions import install_command

_log = logging.getLogger(__name__)
# Total of the sizes below, which scale with the hours of the request.
DEFAULT_HOURS = 7.0
_MINUTES = {
    "librispeech": {"train": 50.0, "dev": 4.0, "test": 8.0},
    "voxceleb": {"train": 33.0, "dev": 3.0, "test": 27.0},
}
_UTTERANCES = {
    "sentences": {"train": 1300, "dev": 100, "test": 250},
    "speech_commands": {"train": 2600, "dev": 360, "test": 720},
    "fluent_commands": {"train": 1860, "dev": 155, "test": 434},
    "snips": {"train": 1300, "dev": 100, "test": 250},
    "iemocap": {"first": 200, "others": 120},
}
# Smallest number of utterances of a split, however few hours are requested.
_AT_LEAST = {
    "sentences": {"train": 32, "dev": 4, "test": 6},
    "speech_commands": {"train": 40, "dev": 12, "test": 12},
    "fluent_commands": {"train": 31, "dev": 4, "test": 8},
    "snips": {"train": 32, "dev": 4, "test": 8},
    "iemocap": {"first": 8, "others": 8},
}
_PRETRAIN_PER_TASK_HOUR = 1.5  # hours of pre-training audio for one hour of task audio
_LAYOUT = 2  # version: increment when the same parameters give other files
_LIBRARIES = ("py_nanotts", "pocketsphinx", "G722")
_ER_LABEL = "synthetic: prosody settings that imitate neutral, happy, angry and sad"


def build_mini(out: Path, hours: float, seed: int, sources: Path, apt: bool) -> dict[str, Any]:
    """Build the embedded corpora below `out` and return what its corpus.json holds.

    out: the corpora root; it is created when all files are complete. hours: requested hours of task audio; there may be
    less, as recorded speech is limited. sources: folder of the Debian packages' files. apt: False to build from
    synthesis alone; without apt or network the build falls back to that. The same hours, seed and sources give the
    same files, bit for bit.

    A finished build with the same parameters is returned at once. An interrupted one is resumed. Raises UserError for
    bad parameters, an `out` that holds anything else, missing libraries, or a source with a wrong checksum.
    """
    if not 0 < hours < float("inf"):
        raise UserError(f"hours is {hours}, but must be more than 0, for example {DEFAULT_HOURS:g}")
    if seed < 0:
        raise UserError(f"seed is {seed}, but must be 0 or more")
    out, sources = out.resolve(), sources.resolve()
    request = {"hours": float(hours), "seed": seed, "apt": apt, "layout": _LAYOUT}
    done = _finished(out, request)
    if done is not None:
        return done
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the embedded corpora need {', '.join(missing)}: `{install_command('corpora')}` installs them")
    container: Path | None = None
    if apt:
        try:
            packages.obtain(sources)
            container = packages.QUEEN.path(sources)
        except packages.Unavailable as reason:
            _log.warning("recorded speech is not available (%s); all tasks use synthesis", reason)
    else:
        _log.info("recorded speech is not requested; all tasks use synthesis")
    partial = out.with_name(f".{out.name}.partial")
    _start(partial, {**request, "recorded": container is not None})
    summary = _build(partial, out, hours, seed, sources, container)
    summary = {"complete": True, "parameters": request, **summary}
    with atomic_write(partial / "corpus.json") as temporary:
        temporary.write_text(json_text(summary, indent=2) + "\n", encoding="utf-8")
    for unfinished in partial.rglob(f".*{UNFINISHED}"):  # of a build that was killed
        unfinished.unlink()
    (partial / "parameters.json").unlink()
    os.sync()
    if out.exists():
        out.rmdir()  # it is empty: _finished refuses other folders
    partial.rename(out)
    return summary


def _finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a finished build with the same parameters; None if `out` is missing or empty."""
    if not out.exists():
        return None
    path = out / "corpus.json"
    if not path.is_file():
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise UserError(f"{out} is neither empty nor holds embedded corpora: name a new folder")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = summary["parameters"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by `superbit corpus mini`: name a new folder") from error
    if found != request:
        differing = ", ".join(
            f"{key} {found.get(key)} (requested: {value})" for key, value in request.items() if found.get(key) != value
        )
        raise UserError(f"{out} holds corpora with other parameters: {differing}; remove it or name a new folder")
    return summary


def _start(partial: Path, parameters: dict[str, Any]) -> None:
    """Create the working folder; remove the files of an interrupted build with other parameters."""
    path = partial / "parameters.json"
    if partial.exists() and not (path.is_file() and path.read_text(encoding="utf-8") == json.dumps(parameters)):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(parameters), encoding="utf-8")


def _build(partial: Path, out: Path, hours: float, seed: int, sources: Path, container: Path | None) -> dict[str, Any]:
    """Write everything except corpus.json below `partial`; return the summary."""
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
    sentences = librispeech.plan_synthetic(counts["sentences"], seed)
    characters, sessions = voxceleb.plan(utterances, seconds["voxceleb"], seed)
    keywords = speech_commands.plan(counts["speech_commands"], seed)
    commands = fluent_commands.plan(counts["fluent_commands"], seed)
    requests = snips.plan(counts["snips"], seed)
    emotions = iemocap.plan(counts["iemocap"], seed)
    task_clips = [*read, *sentences, *characters, *keywords, *commands, *requests, *emotions]
    held = pretraining.held_out(utterances, task_clips, sessions)
    target = hours * 3600 * _PRETRAIN_PER_TASK_HOUR
    pretraining_clips = pretraining.plan([*utterances, *prompts], task_clips, held, target, seed)

    samples = write_clips(partial, dict.fromkeys([*task_clips, *pretraining_clips]))
    librispeech.write(partial, [*read, *sentences], samples, lexicon)
    voxceleb.write(partial, characters)
    fluent_commands.write(partial, commands)
    snips.write(partial, requests)
    iemocap.write(partial, emotions)
    splits = pretraining.split_valid(pretraining_clips, samples, seed)
    pretraining.write(partial, out, splits, samples)

    kind = "synthetic" if container is None else "real"
    tasks = {}
    for task in SEVEN:
        clips = [clip for clip in task_clips if task in clip.tasks]
        tasks[task] = {
            "speech": kind if task in ("pr", "sid") else "synthetic",
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
