"""Counts of what a corpus on disk holds, beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.emotions import read_emotions
from runners.corpora.files import read_table, recordings
from runners.corpora.published import COUNTS, EMOTIONS, LIBRISPEECH_SETS, NOISE
from runners.tasks import FOLDS
from upstreams.audio_files import find_audio
from upstreams.files import universal_lines
from upstreams.s3prl import ctc_corpus as ctc

_FLUENT = ("train", "valid", "test")  # the lists of Fluent Speech Commands


@dataclass(frozen=True)
class Count:
    """Size of one part of a corpus: files, utterances or speakers."""

    part: str
    found: int
    published: int

    @property
    def is_as_published(self) -> bool:
        """True if the corpus holds exactly the published number."""
        return self.found == self.published


def counts(task: str, config: Mapping[str, Any]) -> list[Count]:
    """Count the parts of a task's corpus, and compare them with the published version whose numbers are closest."""
    found = COUNTERS[task](config["downstream_expert"])
    closest = min(COUNTS[task], key=lambda published: sum(abs(published[part] - found[part]) for part in published))
    return [Count(part, found[part], closest[part]) for part in closest]


def unlisted(task: str, config: Mapping[str, Any]) -> list[str]:
    """Return the audio files of IC and SID that no list names, sorted; nothing for other tasks.

    The checks of the others compare both directions, or a list names a part of the audio by design.
    """
    root = Path(config["downstream_expert"]["datarc"]["file_path"]) if task in ("ic", "sid") else Path()
    if task == "ic":
        listed = {path for split in _FLUENT for (path,) in read_table(root / "data" / f"{split}_data.csv", "path")}
        return [name for name in _below(root, "wavs") if name not in listed]
    if task == "sid":
        named = {
            line.split()[1]
            for line in universal_lines(config["downstream_expert"]["datarc"]["meta_data"], skip_mark=True)
        }
        return [
            name
            for half in ("dev", "test")
            for name in _below(root, f"{half}/wav")
            if name.split("/", 2)[2] not in named
        ]
    return []


def _below(root: Path, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in find_audio(root / folder, (".wav",))] if (root / folder).is_dir() else []


def _librispeech(root: Path, lists: Path | None = None) -> dict[str, int]:
    """Count the files below the folders, or those that ASR's `lists` name, since ASR reads no others."""
    found = {}
    for name in LIBRISPEECH_SETS.values():
        if lists is None:
            files = [f"{name}/{file}" for file in find_audio(root / name, (".flac",))]
        else:
            files = [file for (file,) in read_table(lists / f"{name}.csv", "file_path")]
        found[f"{name} utterances"] = len(files)
        found[f"{name} speakers"] = len({file.rsplit("/", 2)[0] for file in files})
    return found


def _speech_commands(expert: Mapping[str, Any]) -> dict[str, int]:
    train, test = (Path(expert["datarc"][f"speech_commands_{part}root"]) for part in ("", "test_"))
    folders = [name.partition("/")[0] for name in recordings(train)]
    noises = folders.count(NOISE)
    return {
        "words": len(set(folders) - {NOISE}),
        "recordings": len(folders) - noises,
        "background noises": noises,
        "test recordings": len(recordings(test)),
    }


def _voxceleb(expert: Mapping[str, Any]) -> dict[str, int]:
    rows = [line.split() for line in universal_lines(expert["datarc"]["meta_data"], skip_mark=True)]
    found = {
        name: sum(row[0] == split for row in rows) for split, name in zip("123", ("train", "dev", "test"), strict=True)
    }
    return found | {"speakers": len({row[1].partition("/")[0] for row in rows})}


def _iemocap(expert: Mapping[str, Any]) -> dict[str, int]:
    root, meta = Path(expert["datarc"]["root"]), Path(expert["datarc"]["meta_data"])
    found = dict.fromkeys(EMOTIONS, 0)
    for session in range(1, len(FOLDS) + 1):
        listing = meta / f"Session{session}" / "test_meta_data.json"
        rows = []  # a part of the corpus may lack sessions
        if listing.is_file():
            rows = json.loads(listing.read_text(encoding="utf-8"))["meta_data"]
        elif (root / f"Session{session}").is_dir():
            rows = read_emotions(root, session)
        found[f"Session{session}"] = len(rows)
        for row in rows:
            found[row["label"]] += 1
    return found


def _fluent(expert: Mapping[str, Any]) -> dict[str, int]:
    found, speakers = {}, set()
    for split in _FLUENT:
        rows = read_table(Path(expert["datarc"]["file_path"], "data", f"{split}_data.csv"), "speakerId")
        found[split] = len(rows)
        speakers |= {speaker for (speaker,) in rows}
    return found | {"speakers": len(speakers)}


def _snips(expert: Mapping[str, Any]) -> dict[str, int]:
    corpus = expert["corpus"]
    sentences = ctc.read_iob(Path(corpus["path"], "all.iob.snips.txt"))
    return {
        split: len(ctc.read_snips(corpus["path"], split, corpus[f"{split}_speakers"], sentences).listed)
        for split in ("train", "valid", "test")
    }


def _quesst(expert: Mapping[str, Any]) -> dict[str, int]:
    lists = {"utterances": "utterances", "dev queries": "dev", "eval queries": "eval"}
    scoring = Path(expert["datarc"]["dataset_root"], "scoring")
    return {
        part: len(universal_lines(scoring / f"language_key_{name}.lst", skip_mark=True)) for part, name in lists.items()
    }


def _verification(expert: Mapping[str, Any]) -> dict[str, int]:
    datarc = expert["datarc"]
    files = find_audio(Path(datarc["file_path"], "dev", "wav"))
    return {
        "speakers": len({file.partition("/")[0] for file in files}),
        "utterances": len(files),
        "trials": len(universal_lines(datarc["test_meta_data"], skip_mark=True)),
    }


def _mixtures(expert: Mapping[str, Any]) -> dict[str, int]:
    return {
        split: len(universal_lines(Path(expert["loaderrc"][f"{split}_dir"], "wav.scp"), skip_mark=True))
        for split in ("train", "dev", "test")
    }


COUNTERS: dict[str, Callable[[Mapping[str, Any]], dict[str, int]]] = {
    "asr": lambda expert: _librispeech(Path(expert["datarc"]["libri_root"]), Path(expert["datarc"]["bucket_file"])),
    "pr": lambda expert: _librispeech(Path(expert["corpus"]["path"])),
    "ks": _speech_commands,
    "sid": _voxceleb,
    "er": _iemocap,
    "ic": _fluent,
    "sf": _snips,
    "qbe": _quesst,
    "asv": _verification,
    "sd": _mixtures,
}
