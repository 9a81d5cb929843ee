"""The datasets of s3prl's CTC tasks (PR, SF, character ASR), which its PyPI package lacks.

s3prl builds them as `Dataset(splits, tokenizer, bucket_size, path=..., **corpus_config)` and reads `(audio path, token
ids)` pairs from them: one pair for an index, or with bucketing the `bucket_size` utterances of similar length from
that index on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from upstreams.errors import UserError

Utterance = tuple[Path, list[int]]


class Tokenizer(Protocol):
    """The part of s3prl's text encoders that is used here."""

    unk_idx: int

    def encode(self, text: str) -> list[int]: ...

    def vocab_to_idx(self, symbol: str) -> int: ...


def read_transcripts(chapter: Path) -> dict[str, str]:
    """Return utterance id -> words from a LibriSpeech chapter's .trans.txt file; raise UserError if it is missing."""
    path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: every LibriSpeech chapter folder must hold its transcripts")
    transcripts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            utterance, _, words = line.strip().partition(" ")
            transcripts[utterance] = words
    return transcripts


def read_lexicon(paths: Iterable[str | Path]) -> dict[str, list[str]]:
    """Return word -> phones from files of `WORD PH PH` lines; the first line of a word counts."""
    lexicon: dict[str, list[str]] = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
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


def librispeech_utterances(path: str | Path, splits: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield (audio path, words) of every .flac file below the splits, sorted by path within a split.

    Raises UserError for a split without audio, a chapter without transcripts, and an utterance without a transcript.
    """
    for split in splits:
        files = sorted(Path(path, split).rglob("*.flac"))
        if not files:
            raise UserError(f"{Path(path, split)} holds no .flac file: expected <speaker>/<chapter>/<utterance>.flac")
        chapter, transcripts = None, {}
        for file in files:
            if file.parent != chapter:
                chapter = file.parent
                transcripts = read_transcripts(chapter)
            if file.stem not in transcripts:
                raise UserError(f"{file} has no line in the .trans.txt file beside it")
            yield file, transcripts[file.stem]


def read_iob(path: str | Path) -> dict[str, str]:
    """Return utterance id -> `BOS W W EOS<TAB>O slot slot intent` from all.iob.snips.txt.

    Raises UserError for a line without a tab or with fewer slots than words.
    """
    sentences = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        utterance, _, sentence = line.strip().partition(" ")
        words, tab, labels = sentence.partition("\t")
        if not tab or len(words.split(" ")) > len(labels.split(" ")):
            raise UserError(f"{path}, line {number}: expected `<uid> BOS <words> EOS<TAB>O <slots> <intent>`")
        sentences[utterance] = sentence
    return sentences


def snips_utterances(path: str | Path, splits: Iterable[str], speakers: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield (audio path, sentence with slots) of the speakers' utterances, sorted by path within a split.

    A speaker's file names begin with the speaker's name (Ivy-snips-train-1.wav). Files that all.iob.snips.txt does not
    list are skipped, as in the published recipe. Raises UserError for a split without a listed file.
    """
    sentences = read_iob(Path(path, "all.iob.snips.txt"))
    prefixes = tuple(speakers)
    for split in splits:
        spoken = [f for f in sorted(Path(path, split).rglob("*.wav")) if f.stem.startswith(prefixes)]
        listed = [f for f in spoken if f.stem in sentences]
        if not listed:
            raise UserError(
                f"{Path(path, split)} holds no .wav file of the speakers {', '.join(prefixes)} that "
                f"{Path(path, 'all.iob.snips.txt')} lists"
            )
        if len(listed) < len(spoken):
            print(f"[snips] {len(spoken) - len(listed)} files of {split} are skipped: not in all.iob.snips.txt")
        for file in listed:
            yield file, sentences[file.stem]


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
