"""The datasets of s3prl's CTC tasks (PR, SF, character ASR), which its PyPI package lacks.

s3prl builds them as `Dataset(splits, tokenizer, bucket_size, path=..., **corpus_config)` and reads `(audio path, token
ids)` pairs from them: one pair for an index, or with bucketing the `bucket_size` utterances of similar length from
that index on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from upstreams.audio_files import find_audio
from upstreams.errors import UserError
from upstreams.files import universal_lines

Utterance = tuple[Path, list[int]]


class Tokenizer(Protocol):
    """The part of s3prl's text encoders that is used here."""

    unk_idx: int

    def encode(self, text: str) -> list[int]: ...

    def vocab_to_idx(self, symbol: str) -> int: ...


def read_transcripts(path: str | Path) -> dict[str, str]:
    """Return utterance id -> words, with one space between words, from a .trans.txt file of LibriSpeech.

    Blank lines are skipped. Raises UserError for an utterance without words or with two lines.
    """
    transcripts: dict[str, str] = {}
    for number, line in enumerate(universal_lines(path, skip_mark=True), 1):
        # Only blanks end the id: str.split would also split at other characters, which a file's name may hold.
        utterance, _, rest = line.replace("\t", " ").strip(" ").partition(" ")
        words = " ".join(rest.split())
        if not utterance:
            continue
        if not words:
            raise UserError(f"{path}, line {number}: {utterance} has no words")
        if utterance in transcripts:
            raise UserError(f"{path}, line {number}: {utterance} has a transcript above")
        transcripts[utterance] = words
    return transcripts


def read_lexicon(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """Return word -> phones from files of `WORD PH PH` lines; the first line of a word counts."""
    lexicon: dict[str, list[str]] = {}
    for path in paths:
        for line in universal_lines(path, skip_mark=True):
            word, *phones = line.split() or [""]
            if phones:
                lexicon.setdefault(word, phones)
    return lexicon


def pronounce(words: str, lexicon: dict[str, list[str]], utterance: Path) -> list[str]:
    """Return the phones of a transcript; raise UserError for a word that the lexicon lacks."""
    phones = []
    for word in words.split():
        if word not in lexicon:
            raise UserError(f"the lexicon lacks the word {word!r} of {utterance}")
        phones += lexicon[word]
    return phones


def _by_id(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Return utterance id -> path below the folder; raise UserError if two files have the same id."""
    files: dict[str, str] = {}
    for name in names:
        utterance = name.rpartition("/")[2].rpartition(".")[0]
        if utterance in files:
            raise UserError(f"{folder / files[utterance]} and {folder / name} are both the utterance {utterance}")
        files[utterance] = name
    return files


def librispeech_names(path: str | Path, folder: str) -> list[tuple[str, str]]:
    """Return (path below `path`, words) of every .flac file below PATH/folder, sorted by path.

    Raises UserError for a folder without audio, a chapter without transcripts, an utterance without a transcript or
    without audio, and an id that two chapters have.
    """
    chapters: dict[str, list[str]] = {}
    for name in find_audio(Path(path, folder), (".flac", ".trans.txt")):
        chapter, _, file = name.rpartition("/")
        chapters.setdefault(chapter, []).append(file)
    utterances = []
    seen: dict[str, str] = {}
    for chapter, files in chapters.items():
        place = f"{folder}/{chapter}" if chapter else folder
        listing = f"{'-'.join(Path(place).parts[-2:])}.trans.txt"
        audio = _by_id((file for file in files if file.lower().endswith(".flac")), Path(path, place))
        if audio and listing not in files:
            raise UserError(
                f"{Path(path, place, listing)} is missing: every LibriSpeech chapter folder must hold its transcripts"
            )
        transcripts = read_transcripts(Path(path, place, listing)) if listing in files else {}
        if untold := audio.keys() - transcripts.keys():
            raise UserError(f"{Path(path, place, audio[min(untold)])} has no line in {listing} beside it")
        if unheard := transcripts.keys() - audio.keys():
            raise UserError(
                f"{Path(path, place, listing)} has a line for {min(unheard)}, but there is no such .flac file"
            )
        for utterance, file in audio.items():
            if utterance in seen:
                raise UserError(
                    f"{Path(path, place, file)} has the same name as a file in {Path(path, seen[utterance])}"
                )
            seen[utterance] = place
            utterances.append((f"{place}/{file}", transcripts[utterance]))
    if not utterances:
        raise UserError(f"{Path(path, folder)} holds no .flac file: expected <speaker>/<chapter>/<utterance>.flac")
    return utterances


def librispeech_utterances(path: str | Path, folders: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield (audio path, words) of every .flac file below the folders; raises as `librispeech_names` does."""
    for folder in folders:
        for name, words in librispeech_names(path, folder):
            yield Path(path, name), words


def read_iob(path: str | Path) -> dict[str, str]:
    """Return utterance id -> `BOS W W EOS<TAB>O slot slot intent` from all.iob.snips.txt.

    Raises UserError for a line without one tab between them or with fewer slots than words, and for an id with two
    lines.
    """
    sentences = {}
    for number, line in enumerate(universal_lines(path, skip_mark=True), 1):
        if not line.strip():
            continue
        utterance, sentence = [*re.split(r"[ \t]+", line.strip(" "), maxsplit=1), ""][:2]
        words, tab, labels = sentence.partition("\t")
        if not tab or "\t" in labels or not 3 <= len(words.split(" ")) <= len(labels.split(" ")):
            raise UserError(f"{path}, line {number}: expected `<uid> BOS <words> EOS<TAB>O <slots> <intent>`")
        if utterance in sentences:
            raise UserError(f"{path}, line {number}: {utterance} has a sentence above")
        sentences[utterance] = sentence
    return sentences


class SnipsSplit(NamedTuple):
    """The files of one folder of Audio SNIPS, and what has no counterpart."""

    listed: list[tuple[str, str]]  # (path below the corpus, sentence with slots), sorted by path
    unlisted: list[str]  # paths of files that all.iob.snips.txt does not list
    silent: list[str]  # ids of sentences without a file


def read_snips(path: str | Path, folder: str, speakers: Iterable[str], sentences: Mapping[str, str]) -> SnipsSplit:
    """Return what PATH/folder holds of the speakers' utterances.

    A speaker's file names begin with the speaker's name (Ivy-snips-train-1.wav). Raises UserError if no file is listed.
    """
    prefixes = tuple(speakers)
    found = _by_id(find_audio(Path(path, folder), (".wav",)), Path(path, folder))
    spoken = {utterance: f"{folder}/{name}" for utterance, name in found.items() if utterance.startswith(prefixes)}
    listed = [(name, sentences[utterance]) for utterance, name in spoken.items() if utterance in sentences]
    if not listed:
        raise UserError(
            f"{Path(path, folder)} holds no .wav file of the speakers {', '.join(prefixes)} that "
            f"{Path(path, 'all.iob.snips.txt')} lists"
        )
    ours = tuple(f"{speaker}-snips-{folder}-" for speaker in prefixes)
    return SnipsSplit(
        listed,
        [name for utterance, name in spoken.items() if utterance not in sentences],
        [utterance for utterance in sentences if utterance.startswith(ours) and utterance not in spoken],
    )


def snips_utterances(path: str | Path, folders: Iterable[str], speakers: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield (audio path, sentence with slots) of the speakers' utterances, sorted by path within a folder.

    Files that all.iob.snips.txt does not list are skipped, as in the published recipe. Raises as `read_snips` does.
    """
    sentences = read_iob(Path(path, "all.iob.snips.txt"))
    for folder in folders:
        split = read_snips(path, folder, speakers, sentences)
        if split.unlisted:
            print(f"[snips] {len(split.unlisted)} files of {folder} are skipped: not in all.iob.snips.txt")
        for name, sentence in split.listed:
            yield Path(path, name), sentence


class BucketedUtterances:
    """A map-style dataset of (audio path, token ids), sorted by text length, longest first."""

    def __init__(self, utterances: Iterable[Utterance], bucket_size: int):
        # The sort is stable: utterances of equal length stay sorted by path.
        self.utterances = sorted(utterances, key=lambda utterance: len(utterance[1]), reverse=True)
        self.bucket_size = bucket_size

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Utterance | list[Utterance]:
        if self.bucket_size == 1:
            return self.utterances[index]
        start = max(0, min(index, len(self) - self.bucket_size))
        return self.utterances[start : start + self.bucket_size]


class LibriPhoneDataset(BucketedUtterances):
    """LibriSpeech as phones.

    Raises UserError for a word that the lexicon lacks and a phone that the vocabulary lacks.
    """

    def __init__(
        self,
        splits: list[str],
        tokenizer: Tokenizer,
        bucket_size: int,
        path: str,
        lexicon: list[str],
        **corpus: Any,
    ):
        words_to_phones = read_lexicon(lexicon)

        def encode(words: str, file: Path) -> list[int]:
            phones = pronounce(words, words_to_phones, file)
            for phone in phones:
                if tokenizer.vocab_to_idx(phone) == tokenizer.unk_idx:
                    raise UserError(f"the phone vocabulary lacks {phone!r}, which the lexicon gives for {file}")
            return tokenizer.encode(" ".join(phones))

        utterances = librispeech_utterances(path, splits)
        super().__init__(((file, encode(words, file)) for file, words in utterances), bucket_size)


class LibriDataset(BucketedUtterances):
    """LibriSpeech as characters, or other symbols of the tokenizer."""

    def __init__(self, splits: list[str], tokenizer: Tokenizer, bucket_size: int, path: str, **corpus: Any):
        utterances = librispeech_utterances(path, splits)
        super().__init__(((file, tokenizer.encode(words)) for file, words in utterances), bucket_size)


class SnipsDataset(BucketedUtterances):
    """Audio SNIPS as characters with slot marks; `corpus` holds the speakers of each split as `<split>_speakers`."""

    def __init__(self, splits: list[str], tokenizer: Tokenizer, bucket_size: int, path: str, **corpus: Any):
        utterances = snips_utterances(path, splits, corpus[f"{splits[0]}_speakers"])
        super().__init__(((file, tokenizer.encode(sentence)) for file, sentence in utterances), bucket_size)
