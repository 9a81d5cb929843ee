"""Make the files that s3prl expects beside a downloaded corpus from the corpus itself.

A file that is missing is made, and one that was made from something else than the corpus holds now is made again. A
file that its user wrote or changed stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runners.corpora import emotions
from runners.corpora.bucket_files import measured_lengths, source_of, write_list
from runners.corpora.published import EMOTIONS
from upstreams.errors import UserError
from upstreams.files import sha256, universal_lines
from upstreams.s3prl import ctc_corpus as ctc
from upstreams.s3prl.made_files import State, digest, is_own, making, place, state

LEXICON_URL = "https://www.openslr.org/resources/11/librispeech-lexicon.txt"
SPLIT_URL = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"
_TO_MAKE = (State.MISSING, State.STALE)


def prepare(task: str, config: Mapping[str, Any]) -> list[Path]:
    """Write the files that a task's corpus lacks or whose sources have changed, and return their paths.

    Raises UserError if a file that they are made from is missing, a file cannot be written, or something is wrong that
    only the user can repair.
    """
    try:
        return PREPARERS[task](config["downstream_expert"]) if task in PREPARERS else []
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be written: {error.strerror}; SUPERBIT_CACHE names a folder for files that are "
            "made for read-only corpora"
        ) from None


def prepare_asr(expert: Mapping[str, Any]) -> list[Path]:
    """Write the lists of audio lengths, from which s3prl makes batches; of dev-other and test-other if they exist."""
    datarc = expert["datarc"]
    names = [name for key in ("train", "dev-clean", "test-clean") for name in datarc[key]]
    others = [name for key in ("dev-other", "test-other") for name in datarc.get(key, ())]
    written = []
    for name in [*names, *(name for name in others if Path(datarc["libri_root"], name).is_dir())]:
        listing = Path(datarc["bucket_file"], f"{name}.csv")
        if is_own(listing):
            continue
        lengths = measured_lengths(datarc["libri_root"], name)
        if state(listing, source_of(lengths)) in _TO_MAKE:
            written.append(write_list(listing, lengths))
    return written


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
    path = place(files[0].parent, "missing_words.txt")
    listed = ""
    if not is_own(path):
        with making(path, digest(item for row in sorted(unknown.items()) for item in row)) as temporary:
            lines = (f"{word} {count}\n" for word, count in sorted(unknown.items()))
            temporary.write_text("".join(lines), encoding="utf-8")
        listed = f"; {path} lists them"
    raise UserError(
        f"the lexicon lacks {len(unknown)} words of the transcripts, such as {min(unknown)!r}{listed}: add "
        f"{files[0].parent}/librispeech-lexicon-<name>.txt with a line `WORD PH PH` for each of them, for example from "
        "a grapheme-to-phoneme model"
    )


def prepare_sid(expert: Mapping[str, Any]) -> list[Path]:
    """Copy VoxCeleb1's list for identification, iden_split.txt, to the name that s3prl reads."""
    listing, official = Path(expert["datarc"]["meta_data"]), Path(expert["datarc"]["file_path"], "iden_split.txt")
    if not official.is_file():
        if listing.is_file():
            return []
        raise UserError(f"{official} is missing: download {SPLIT_URL} to it")
    source = sha256(official)
    if state(listing, source) not in _TO_MAKE:
        return []
    with making(listing, source) as temporary:
        lines = (f"{line.strip()}\n" for line in universal_lines(official, skip_mark=True) if line.strip())
        temporary.write_text("".join(lines), encoding="utf-8")
    return [listing]


def prepare_er(expert: Mapping[str, Any]) -> list[Path]:
    """Write two lists for each session: its utterances of the four emotions (test), and those of the others (train)."""
    root, meta = Path(expert["datarc"]["root"]), Path(expert["datarc"]["meta_data"])
    found = emotions.sessions(root)
    if not found:
        raise UserError(f"{root} holds no folder Session1 to Session5")
    targets = {(k, kind): meta / f"Session{k}" / f"{kind}_meta_data.json" for k in found for kind in ("train", "test")}
    if all(is_own(path) for path in targets.values()):
        return []
    rows = {session: emotions.read_emotions(root, session) for session in found}
    source = emotions.source_of(rows)
    written = []
    for (session, kind), path in targets.items():
        if state(path, source) in _TO_MAKE:
            others = [row for other in found if other != session for row in rows[other]]
            content = {"labels": EMOTIONS, "meta_data": others if kind == "train" else rows[session]}
            with making(path, source) as temporary:
                temporary.write_text(json.dumps(content), encoding="utf-8")
            written.append(path)
    return written


def prepare_sf(expert: Mapping[str, Any]) -> list[Path]:
    """Write the names of the slots of all sentences to slots.txt, after a first line that s3prl skips."""
    path, sentences = Path(expert["text"]["slots_file"]), Path(expert["corpus"]["path"], "all.iob.snips.txt")
    if is_own(path):
        return []
    if not sentences.is_file():
        raise UserError(f"the file {sentences} is missing: it is part of the preprocessed Audio SNIPS")
    source = sha256(sentences)
    if state(path, source) not in _TO_MAKE:
        return []
    names = set()
    for line in universal_lines(sentences, skip_mark=True):
        names |= {label.removeprefix("B-").removeprefix("I-") for label in line.partition("\t")[2].split(" ")[1:-1]}
    with making(path, source) as temporary:
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
