"""Counts of what a corpus on disk holds, beside the published numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.prepare import read_emotions
from runners.corpora.published import COUNTS, EMOTIONS, LIBRISPEECH_SETS
from runners.tasks import FOLDS
from upstreams.s3prl import ctc_corpus as ctc


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


def _librispeech(root: Path, lists: Path | None = None) -> dict[str, int]:
    """Count the files below the folders, or those that ASR's `lists` name, since ASR reads no others."""
    found = {}
    for name in LIBRISPEECH_SETS.values():
        if lists is None:
            files = list((root / name).glob("*/*/*.flac"))
        else:
            with (lists / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                files = [Path(row["file_path"]) for row in csv.DictReader(file)]
        found[f"{name} utterances"] = len(files)
        found[f"{name} speakers"] = len({file.parent.parent.name for file in files})
    return found


def _speech_commands(expert: Mapping[str, Any]) -> dict[str, int]:
    train, test = (Path(expert["datarc"][f"speech_commands_{part}root"]) for part in ("", "test_"))
    words = [folder for folder in train.iterdir() if folder.is_dir() and not folder.name.startswith("_")]
    return {
        "words": len(words),
        "recordings": sum(1 for word in words for _ in word.glob("*.wav")),
        "background noises": sum(1 for _ in (train / "_background_noise_").glob("*.wav")),
        "test recordings": sum(1 for _ in test.glob("*/*.wav")),
    }


def _voxceleb(expert: Mapping[str, Any]) -> dict[str, int]:
    lines = Path(expert["datarc"]["meta_data"]).read_text(encoding="utf-8").split("\n")
    rows = [line.split(" ", 1) for line in lines if line]
    found = {
        name: sum(row[0] == split for row in rows) for split, name in zip("123", ("train", "dev", "test"), strict=True)
    }
    return found | {"speakers": len({row[1].partition("/")[0] for row in rows})}


def _iemocap(expert: Mapping[str, Any]) -> dict[str, int]:
    root, meta = Path(expert["datarc"]["root"]), Path(expert["datarc"]["meta_data"])
    found = dict.fromkeys(EMOTIONS, 0)
    for session in range(1, len(FOLDS) + 1):
        listing = meta / f"Session{session}" / "test_meta_data.json"
        rows = (
            json.loads(listing.read_text(encoding="utf-8"))["meta_data"]
            if listing.is_file()
            else read_emotions(root, session)
        )
        found[f"Session{session}"] = len(rows)
        for row in rows:
            found[row["label"]] += 1
    return found


def _fluent(expert: Mapping[str, Any]) -> dict[str, int]:
    found, speakers = {}, set()
    for split in ("train", "valid", "test"):
        with Path(expert["datarc"]["file_path"], "data", f"{split}_data.csv").open(
            encoding="utf-8", newline=""
        ) as file:
            rows = list(csv.DictReader(file))
        found[split] = len(rows)
        speakers |= {row["speakerId"] for row in rows}
    return found | {"speakers": len(speakers)}


def _snips(expert: Mapping[str, Any]) -> dict[str, int]:
    corpus = expert["corpus"]
    return {
        split: sum(1 for _ in ctc.snips_utterances(corpus["path"], [split], corpus[f"{split}_speakers"]))
        for split in ("train", "valid", "test")
    }


def _quesst(expert: Mapping[str, Any]) -> dict[str, int]:
    lists = {"utterances": "utterances", "dev queries": "dev", "eval queries": "eval"}
    scoring = Path(expert["datarc"]["dataset_root"], "scoring")
    return {
        part: len((scoring / f"language_key_{name}.lst").read_text(encoding="utf-8").splitlines())
        for part, name in lists.items()
    }


def _verification(expert: Mapping[str, Any]) -> dict[str, int]:
    datarc = expert["datarc"]
    files = list(Path(datarc["file_path"], "dev", "wav").glob("*/*/*.wav"))
    return {
        "speakers": len({file.parent.parent.name for file in files}),
        "utterances": len(files),
        "trials": len(Path(datarc["test_meta_data"]).read_text(encoding="utf-8").splitlines()),
    }


def _mixtures(expert: Mapping[str, Any]) -> dict[str, int]:
    return {
        split: len(Path(expert["loaderrc"][f"{split}_dir"], "wav.scp").read_text(encoding="utf-8").splitlines())
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
