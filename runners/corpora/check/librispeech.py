"""Checks of LibriSpeech: audio and transcripts, with ASR's lists of lengths or PR's lexicon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.bucket_files import listed_lengths
from runners.corpora.files import (
    check_audio,
    check_unique,
    existing_file,
    existing_folder,
    split_folders,
)
from upstreams.errors import UserError
from upstreams.files import universal_lines
from upstreams.s3prl import ctc_corpus
from upstreams.s3prl.made_files import is_own


def check_asr(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the audio and the transcripts of the sets, and that the lists of lengths agree with the audio.

    s3prl makes batches from the lists: it reads no other files, and gives each new character a class of its own.
    """
    datarc = expert["datarc"]
    dictionary = existing_file(Path(datarc["dict_path"]))
    root, lists = Path(datarc["libri_root"]), Path(datarc["bucket_file"])
    names = list(dict.fromkeys(name for folders in split_folders(datarc, splits) for name in folders))
    listed: dict[str, list[tuple[str, int]]] = {}
    for name in names:
        existing_folder(root / name)
        listing = existing_file(lists / f"{name}.csv", prepared_for="asr")
        listed[name] = listed_lengths(listing)
        check_unique([file for file, _ in listed[name]], listing)
    files = [file for rows in listed.values() for file, _ in rows]
    frames = {file: header.frames for file, header in zip(files, check_audio(root, files), strict=True)}
    for name in names:
        utterances = ctc_corpus.librispeech_names(root, name)
        _check_characters(root, utterances, dictionary)
        _check_list(root, lists / f"{name}.csv", listed[name], frames, [file for file, _ in utterances])


def _check_characters(root: Path, utterances: Sequence[tuple[str, str]], dictionary: Path) -> None:
    """Raise UserError for a character of a transcript that ASR's dictionary lacks."""
    symbols = {line.rstrip().rpartition(" ")[0] for line in universal_lines(dictionary)}
    strange = set(" ".join(words for _, words in utterances).upper().replace(" ", "|")) - symbols
    for file, words in utterances if strange else ():
        if found := set(words.upper()) & strange:
            raise UserError(
                f"the transcript of {root / file} has the character {min(found)!r}, which is not in {dictionary}: the "
                "head has no class for it"
            )


def _check_list(
    root: Path, listing: Path, rows: Sequence[tuple[str, int]], frames: Mapping[str, int], on_disk: Sequence[str]
) -> None:
    """Raise UserError unless a list of lengths has exactly the files on disk, and their lengths."""
    remedy = f"; {'delete it, then ' if is_own(listing) else ''}`superbit corpus prepare asr` makes it again"
    names = {file for file, _ in rows}
    for file in on_disk:
        if file not in names:
            raise UserError(f"{listing} is stale: it does not list {root / file}{remedy}")
    if unknown := names.difference(on_disk):
        raise UserError(f"{listing} lists {min(unknown)}, which is no visible .flac file of its set{remedy}")
    for file, length in rows:
        if length != frames[file]:
            raise UserError(
                f"{listing} is stale: it gives {length} samples to {file}, which has {frames[file]}{remedy}"
            )


def check_pr(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that every utterance has audio and words, the lexicon has the words, and the vocabulary the phones."""
    corpus = expert["corpus"]
    root = Path(corpus["path"])
    vocabulary = set(universal_lines(existing_file(Path(expert["text"]["vocab_file"]))))
    lexicon = ctc_corpus.read_lexicon(existing_file(Path(path)) for path in corpus["lexicon"])
    folders = list(dict.fromkeys(name for names in split_folders(corpus, splits) for name in names))
    for name in folders:
        existing_folder(root / name)
    utterances = [utterance for name in folders for utterance in ctc_corpus.librispeech_names(root, name)]
    check_audio(root, [file for file, _ in utterances])
    checked: set[str] = set()
    for file, words in utterances:
        for word in set(words.split()) - checked:
            for phone in ctc_corpus.pronounce(word, lexicon, root / file):
                if phone not in vocabulary:
                    raise UserError(
                        f"the phone {phone!r}, which the lexicon gives for {root / file}, "
                        f"is not in {expert['text']['vocab_file']}"
                    )
            checked.add(word)
