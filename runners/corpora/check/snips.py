"""Check of Audio SNIPS (SF)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import check_audio, check_fresh, existing_file, existing_folder, split_folders
from runners.corpora.published import COUNTS
from upstreams.errors import UserError
from upstreams.files import read_text, sha256, universal_lines
from upstreams.s3prl import ctc_corpus
from upstreams.s3prl.ctc_corpus import SnipsSplit
from upstreams.s3prl.made_files import state

TOLERATED = 0.01  # part of the published corpus's characters that may be outside the vocabulary


def check_sf(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the files of each split's speakers, their sentences, and that slots.txt names all slots."""
    corpus, text = expert["corpus"], expert["text"]
    vocabulary = set(universal_lines(existing_file(Path(text["vocab_file"]))))
    root = existing_folder(Path(corpus["path"]))
    listing = existing_file(root / "all.iob.snips.txt")
    sentences = ctc_corpus.read_iob(listing)
    slots_file = existing_file(Path(text["slots_file"]), prepared_for="sf")
    _, *slots = read_text(slots_file).replace("\r\n", "\n").split("\n")  # s3prl skips the first line
    names: list[str] = []
    for folders in split_folders(corpus, splits):
        for name in folders:
            existing_folder(root / name)
        if f"{folders[0]}_speakers" not in corpus:
            raise UserError(f"the configuration lacks the key '{folders[0]}_speakers' beside the splits")
        used: set[str] = set()
        for name in folders:
            split = ctc_corpus.read_snips(root, name, corpus[f"{folders[0]}_speakers"], sentences)
            is_published = len(split.listed) == COUNTS["sf"][0].get(name)
            _check_counterparts(root, split, is_published)
            _check_characters(root, split, vocabulary, is_published)
            names += [file for file, _ in split.listed]
            for file, sentence in split.listed:
                labels = set(sentence.partition("\t")[2].split(" ")[1:-1]) - {"O"}
                if unknown := labels - set(slots):
                    raise UserError(f"the slot {min(unknown)!r} of {root / file} is not in {slots_file}")
                used |= labels
        if not used:
            raise UserError(f"no utterance of {', '.join(folders)} below {root} has a slot: F1 is undefined")
    check_audio(root, names)
    check_fresh(slots_file, state(slots_file, sha256(listing)), "sf")


def _check_counterparts(root: Path, split: SnipsSplit, is_published: bool) -> None:
    """Raise UserError for audio without a sentence and a sentence without audio; the published recipe skips them."""
    if is_published:
        return
    if split.unlisted:
        raise UserError(f"{root / split.unlisted[0]} has no line in {root / 'all.iob.snips.txt'}")
    if split.silent:
        raise UserError(f"{root / 'all.iob.snips.txt'} lists {split.silent[0]}, but there is no such .wav file")


def _check_characters(root: Path, split: SnipsSplit, vocabulary: set[str], is_published: bool) -> None:
    """Raise UserError for a character that s3prl would train on as <unk>."""
    total, strange, first = 0, 0, None
    for file, sentence in split.listed:
        for word in sentence.partition("\t")[0].split(" ")[1:-1]:
            if word in "?!.,;-" or word == "&":  # s3prl leaves these out, and reads & as AND
                continue
            total += len(word)
            if not vocabulary.issuperset(word):
                unknown = [character for character in word if character not in vocabulary]
                strange += len(unknown)
                first = first or (file, unknown[0])
    if first and not (is_published and strange < TOLERATED * total):
        raise UserError(
            f"the sentence of {root / first[0]} has the character {first[1]!r}, which is not in the vocabulary: "
            "the head would be trained on <unk>"
        )
