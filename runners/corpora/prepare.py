"""Make the files that s3prl expects beside a downloaded corpus from the corpus itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runners.corpora.bucket_files import write_bucket_files
from runners.corpora.published import EMOTIONS
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.s3prl import ctc_corpus as ctc

# A line of IEMOCAP's evaluations: [start - end] TAB utterance TAB emotion TAB [valence, activation, dominance]
EVALUATION = re.compile(r"\[[^\]]*\]\t(\S+)\t(\w+)\t")
LEXICON_URL = "https://www.openslr.org/resources/11/librispeech-lexicon.txt"
SPLIT_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"


def prepare(task: str, config: Mapping[str, Any]) -> list[Path]:
    """Write the files that a task's corpus lacks, and return their paths. Existing files stay as they are.

    Raises UserError if a file that they are made from is missing, or something is wrong that only the user can repair.
    """
    return PREPARERS[task](config["downstream_expert"]) if task in PREPARERS else []


def prepare_asr(expert: Mapping[str, Any]) -> list[Path]:
    """Write the lists of audio lengths, from which s3prl makes batches."""
    datarc = expert["datarc"]
    lists = Path(datarc["bucket_file"])
    sets = [name for key in ("train", "dev-clean", "test-clean") for name in datarc[key]]
    missing = [name for name in sets if not (lists / f"{name}.csv").is_file()]
    return write_bucket_files(datarc["libri_root"], lists, missing) if missing else []


def prepare_pr(expert: Mapping[str, Any]) -> list[Path]:
    """Check that the lexicon has every word of the transcripts. A word that it lacks would end the training.

    Writes missing_words.txt, with the number of occurrences of each word, and raises UserError if it lacks any.
    """
    corpus = expert["corpus"]
    files = [Path(path) for path in corpus["lexicon"]]
    if not any(file.is_file() for file in files):
        raise UserError(
            f"{files[0]} is missing: download {LEXICON_URL} to {files[0].parent}, and the lexicons of the words that "
            "it lacks (s3prl/downstream/ctc/lexicon in s3prl's repository) to the same folder"
        )
    known = ctc.read_lexicon(files)
    folders = [name for key in ("train", "dev", "test") for name in corpus[key]]
    unknown: dict[str, int] = {}
    for _, words in ctc.librispeech_utterances(corpus["path"], folders):
        for word in words.split():
            if word not in known:
                unknown[word] = unknown.get(word, 0) + 1
    if not unknown:
        return []
    path = files[0].parent / "missing_words.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{word} {count}\n" for word, count in sorted(unknown.items())), encoding="utf-8")
    raise UserError(
        f"the lexicon lacks {len(unknown)} words of the transcripts, such as {min(unknown)!r}; {path} lists them: add "
        f"{files[0].parent}/librispeech-lexicon-<name>.txt with a line `WORD PH PH` for each of them, for example from "
        "a grapheme-to-phoneme model"
    )


def prepare_sid(expert: Mapping[str, Any]) -> list[Path]:
    """Copy VoxCeleb1's list for identification, iden_split.txt, to the name that s3prl reads."""
    listing = Path(expert["datarc"]["meta_data"])
    if listing.is_file():
        return []
    official = listing.with_name("iden_split.txt")
    if not official.is_file():
        raise UserError(f"{official} is missing: download {SPLIT_URL} to it")
    lines = official.read_text(encoding="utf-8").split("\n")
    with atomic_write(listing) as temporary:
        temporary.write_text("".join(f"{line.strip()}\n" for line in lines if line.strip()), encoding="utf-8")
    return [listing]


def prepare_er(expert: Mapping[str, Any]) -> list[Path]:
    """Write two lists for each session: its utterances of the four emotions (test), and those of the others (train)."""
    root, meta = Path(expert["datarc"]["root"]), Path(expert["datarc"]["meta_data"])
    sessions = sorted(int(path.name[7:]) for path in root.glob("Session*") if path.name[7:].isdigit())
    if not sessions:
        raise UserError(f"{root} holds no folder Session1 to Session5")
    targets = [meta / f"Session{k}" / f"{kind}_meta_data.json" for k in sessions for kind in ("train", "test")]
    if all(path.is_file() for path in targets):
        return []
    rows = {session: read_emotions(root, session) for session in sessions}
    for session in sessions:
        others = [row for other in sessions if other != session for row in rows[other]]
        for kind, chosen in (("train", others), ("test", rows[session])):
            with atomic_write(meta / f"Session{session}" / f"{kind}_meta_data.json") as temporary:
                temporary.write_text(json.dumps({"labels": EMOTIONS, "meta_data": chosen}), encoding="utf-8")
    return targets


def read_emotions(root: Path, session: int) -> list[dict[str, str]]:
    """Return path, label and speaker of a session's utterances that the evaluators agree to be of the four emotions.

    Follows s3prl's IEMOCAP_preprocess.py: excitement counts as happiness, utterances without audio are left out.
    Raises UserError if the evaluations are missing, or no utterance is left.
    """
    folder = root / f"Session{session}" / "dialog" / "EmoEvaluation"
    if not folder.is_dir():
        raise UserError(
            f"the folder {folder} is missing: it should hold IEMOCAP's evaluations, one .txt for each dialog"
        )
    audio = {
        path.stem: path.relative_to(root).as_posix()
        for path in sorted((root / f"Session{session}" / "sentences" / "wav").glob("*/*.wav"))
        if not path.name.startswith("._")
    }
    rows = []
    for listing in sorted(folder.glob("*.txt")):
        if listing.name.startswith("._"):  # left by macOS in the published archive
            continue
        for utterance, emotion in EVALUATION.findall(listing.read_text(encoding="utf-8", errors="replace")):
            label = "hap" if emotion == "exc" else emotion
            if label in EMOTIONS and utterance in audio:
                rows.append({"path": audio[utterance], "label": label, "speaker": utterance.split("_")[0]})
    if not rows:
        raise UserError(f"{folder} names no utterance of the four emotions whose audio is in sentences/wav")
    return rows


def prepare_sf(expert: Mapping[str, Any]) -> list[Path]:
    """Write the names of the slots of all sentences to slots.txt, after a first line that s3prl skips."""
    path, sentences = Path(expert["text"]["slots_file"]), Path(expert["corpus"]["path"], "all.iob.snips.txt")
    if path.is_file():
        return []
    if not sentences.is_file():
        raise UserError(f"the file {sentences} is missing: it is part of the preprocessed Audio SNIPS")
    names = set()
    for line in sentences.read_text(encoding="utf-8").splitlines():
        names |= {label.removeprefix("B-").removeprefix("I-") for label in line.partition("\t")[2].split(" ")[1:-1]}
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(["O", *sorted(names - {"O"})]), encoding="utf-8")
    return [path]


# The other tasks need no more than their downloads.
PREPARERS: dict[str, Callable[[Mapping[str, Any]], list[Path]]] = {
    "asr": prepare_asr,
    "pr": prepare_pr,
    "sid": prepare_sid,
    "er": prepare_er,
    "sf": prepare_sf,
}
