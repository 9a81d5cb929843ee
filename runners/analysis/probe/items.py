"""What a probe classifies: items of a task's training and dev sets, drawn by a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runners.corpora import phones
from runners.corpora.check.fluent_commands import SLOTS
from runners.corpora.files import existing_file, existing_folder, read_table, recordings
from runners.corpora.mini.speech_commands import split_of
from runners.corpora.published import KEYWORDS, NOISE
from runners.tasks import TASKS, task_config
from upstreams.errors import UserError, nearest
from upstreams.files import universal_lines
from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)
from upstreams.s3prl.audio import apply_effects_file, load_mono
from upstreams.s3prl.ctc_corpus import librispeech_names

SPLITS = ("train", "dev")
TITLES = {"ks": "keyword", "sid": "speaker", "ic": "intent", "pr": "phone of a frame"}  # task -> what is recognised
_GAIN = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]  # s3prl's sox effects for KS
_ITEMS_OF_A_CLASS = 10  # at least so many training items are drawn of a class, or the class is left out
_FRAMES_OF_AN_ITEM = 10  # PR: frames are many and short
_FRAMES_OF_AN_UTTERANCE = 100

Labels = tuple[str, ...]  # of one item, one for each slot


@dataclass(frozen=True)
class Items:
    """Items of one split. Their labels are (items, slots): an item is right if all of its slots are.

    moments: None if an item is an utterance; else, for each utterance, the moments that are items, in 10 ms.
    max_samples: of an utterance; the rest is cut off.
    """

    task: str
    files: Sequence[Path]
    labels: NDArray[np.str_]
    moments: Sequence[NDArray[np.int64]] | None = None
    max_samples: int | None = None

    def read(self, index: int) -> Tensor:
        """Return the audio of a file as the task reads it, (samples,) at 16 kHz. Raises UserError naming the file."""
        file = str(self.files[index])
        waveform, _ = apply_effects_file(file, _GAIN) if self.task == "ks" else load_mono(file)
        return waveform[0, : self.max_samples]


def draw(task: str, root: Path, count: int, seed: int) -> dict[str, Items]:
    """Return at most `count` items of the training set and as many of the dev set, drawn evenly over the classes.

    Few items for many classes: so many classes are drawn that each has about ten training items. PR: ten frames for
    each item of the other tasks, at most 100 of an utterance. The same root, count and seed give the same items.

    Raises UserError if the corpus below the corpora root is missing or has another layout, naming it.
    """
    if task not in TITLES:
        raise UserError(f"there is no probe for {task!r}: {nearest(task, TITLES)}")
    expert = task_config(task, root)["downstream_expert"]
    random = np.random.default_rng([seed, list(TITLES).index(task)])
    try:
        if task == "pr":
            return {split: _frames(root, expert["corpus"], split, count, random) for split in SPLITS}
        found = {split: _READERS[task](expert["datarc"], split) for split in SPLITS}
        for split, rows in found.items():
            if not rows:
                raise UserError(f"the {split} set of {task} is empty")
    except UserError as error:
        raise UserError(f"{error}. The layout expected for {task}: {TASKS[task].layout}") from None
    classes = sorted({labels for _, labels in found["train"]})
    most = max(2, count // _ITEMS_OF_A_CLASS)
    if len(classes) > most:
        classes = [classes[k] for k in sorted(random.permutation(len(classes))[:most])]
    limit = expert["datarc"].get("max_timestep")
    drawn = {}
    for split, rows in found.items():
        chosen = _evenly([row for row in rows if row[1] in set(classes)], count, random)
        if not chosen:
            raise UserError(f"the dev set of {task} has none of the {len(classes)} drawn classes: raise --items")
        drawn[split] = Items(task, [file for file, _ in chosen], np.array([y for _, y in chosen]), None, limit)
    return drawn


def _evenly(rows: Sequence[tuple[Path, Labels]], count: int, random: np.random.Generator) -> list[tuple[Path, Labels]]:
    """Draw `count` rows: one of each class, then a second one of each class, until they suffice."""
    by_class: dict[Labels, list[tuple[Path, Labels]]] = {}
    for row in rows:
        by_class.setdefault(row[1], []).append(row)
    ranked = []
    for labels in sorted(by_class):
        for rank, number in enumerate(random.permutation(len(by_class[labels]))):
            ranked.append((rank, random.random(), by_class[labels][number]))
    return [row for *_, row in sorted(ranked)[:count]]


def _keywords(datarc: Mapping[str, Any], split: str) -> list[tuple[Path, Labels]]:
    """Ten keywords, and _unknown_ for all others. Silence, which takes no learning, is left out."""
    root = existing_folder(Path(datarc["speech_commands_root"]))
    words = [(name, *name.split("/")) for name in recordings(root)]
    return [
        (root / name, (word if word in KEYWORDS else "_unknown_",))
        for name, word, file in words
        if word != NOISE and split_of(file.partition("_nohash_")[0]) == split
    ]


def _speakers(datarc: Mapping[str, Any], split: str) -> list[tuple[Path, Labels]]:
    root = Path(datarc["file_path"])
    listing = existing_file(Path(datarc["meta_data"]), prepared_for="sid")
    in_test = {speaker.name for speaker in existing_folder(root / "test" / "wav").iterdir()}
    number = "123"[("train", "dev").index(split)]
    rows = [
        row for row in map(str.split, universal_lines(listing, skip_mark=True)) if len(row) == 2 and row[0] == number
    ]
    speakers = [(name, name.partition("/")[0]) for _, name in rows]
    return [(root / ("test" if s in in_test else "dev") / "wav" / name, (s,)) for name, s in speakers]


def _intents(datarc: Mapping[str, Any], split: str) -> list[tuple[Path, Labels]]:
    root = existing_folder(Path(datarc["file_path"]))
    listing = root / "data" / f"{'valid' if split == 'dev' else split}_data.csv"
    return [(root / path, tuple(slots)) for path, *slots in read_table(listing, "path", *SLOTS)]


_READERS: dict[str, Callable[[Mapping[str, Any], str], list[tuple[Path, Labels]]]] = {
    "ks": _keywords,
    "sid": _speakers,
    "ic": _intents,
}


def _frames(root: Path, corpus: Mapping[str, Any], split: str, count: int, random: np.random.Generator) -> Items:
    """Draw frames of PR's utterances, with the phones that pocketsphinx aligns there, without silence and noise."""
    libri = existing_folder(Path(corpus["path"]))
    utterances = []
    for name in corpus[split]:
        existing_folder(libri / name)
        utterances += [(name, *utterance) for utterance in librispeech_names(libri, name)]
    order = random.permutation(len(utterances))
    wanted = -(-count * _FRAMES_OF_AN_ITEM // _FRAMES_OF_AN_UTTERANCE)
    found: dict[str, list[str]] = {}
    for name in corpus[split]:
        mine = [utterances[k][1:] for k in order if utterances[k][0] == name]
        found |= phones.phones_in_time(root, libri, name, mine, wanted)
    if not found:
        raise UserError(f"no utterance of {libri / corpus[split][0]} can be aligned with its phones")
    moments, labels = [], []
    for of_time in found.values():
        spoken = [moment for moment, phone in enumerate(of_time) if phone != "SIL" and not phone.startswith("+")]
        chosen = np.sort(random.permutation(spoken)[:_FRAMES_OF_AN_UTTERANCE])
        moments.append(chosen)
        labels += [of_time[moment] for moment in chosen]
    return Items("pr", [libri / name for name in found], np.array(labels)[:, None], moments)
