"""What the real corpora hold, counted against what is published of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.prepare import emotions
from upstreams.s3prl import ctc_corpus as ctc

# Utterances, files or speakers of each part. LibriSpeech: Panayotov et al., 2015, table 1. Speech Commands: its own
# descriptions (arXiv 1804.03209). VoxCeleb1: Nagrani et al., 2017, and iden_split.txt. IEMOCAP: Busso et al., 2008, of
# which SUPERB takes 5531 utterances of four classes. Fluent Speech Commands: Lugosch et al., 2019. Audio SNIPS: Lai et
# al., 2021. All of the splits as in the data set card of s3prl/superb.
LIBRISPEECH = {
    "train-clean-100 utterances": 28_539,
    "train-clean-100 speakers": 251,
    "dev-clean utterances": 2_703,
    "dev-clean speakers": 40,
    "test-clean utterances": 2_620,
    "test-clean speakers": 40,
}
PUBLISHED: dict[str, list[dict[str, int]]] = {  # of KS two versions, either of which is right
    "asr": [LIBRISPEECH],
    "pr": [LIBRISPEECH],
    "ks": [
        {"words": 30, "recordings": 64_721, "background noises": 6, "test recordings": 3_081},
        {"words": 35, "recordings": 105_829, "background noises": 6, "test recordings": 4_890},
    ],
    "sid": [{"speakers": 1_251, "train": 138_361, "dev": 6_904, "test": 8_251}],
    "er": [
        {"Session1": 1_085, "Session2": 1_023, "Session3": 1_151, "Session4": 1_031, "Session5": 1_241}
        | {"neu": 1_708, "hap": 1_636, "ang": 1_103, "sad": 1_084}
    ],
    "ic": [{"speakers": 97, "train": 23_132, "valid": 3_118, "test": 3_793}],
    "sf": [{"train": 104_672, "valid": 2_800, "test": 2_800}],
    # Anguera et al., 2014; Nagrani et al., 2017; Cosentino et al., 2020 (Libri2Mix, train-100).
    "qbe": [{"utterances": 12_492, "dev queries": 560, "eval queries": 555}],
    "asv": [{"speakers": 1_211, "utterances": 148_642, "trials": 37_720}],
    "sd": [{"train": 13_900, "dev": 3_000, "test": 3_000}],
}


@dataclass(frozen=True)
class Count:
    """One line of the comparison."""

    what: str
    found: int
    published: int

    @property
    def is_right(self) -> bool:
        """Whether the corpus holds what is published."""
        return self.found == self.published


def counts(task: str, config: Mapping[str, Any]) -> list[Count]:
    """What a task's corpus holds by its configuration, beside the published numbers of the version nearest to it."""
    found = COUNTERS[task](config["downstream_expert"])
    versions = PUBLISHED[task]
    nearest = min(versions, key=lambda published: sum(abs(published[key] - found[key]) for key in published))
    return [Count(what, found[what], nearest[what]) for what in nearest]


def _librispeech(root: Path, lists: Path | None = None) -> dict[str, int]:
    """What the folders hold; of ASR, which reads no other, what its lists name."""
    found = {}
    for name in ("train-clean-100", "dev-clean", "test-clean"):
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
    found = dict.fromkeys(("neu", "hap", "ang", "sad"), 0)
    for session in range(1, 6):
        listing = meta / f"Session{session}" / "test_meta_data.json"
        rows = (
            json.loads(listing.read_text(encoding="utf-8"))["meta_data"]
            if listing.is_file()
            else emotions(root, session)
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
    parts = {"utterances": "utterances", "dev": "dev queries", "eval": "eval queries"}
    scoring = Path(expert["datarc"]["dataset_root"], "scoring")
    return {
        what: len((scoring / f"language_key_{part}.lst").read_text(encoding="utf-8").splitlines())
        for part, what in parts.items()
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
