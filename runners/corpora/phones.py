"""Phones of LibriSpeech's utterances in time, by forced alignment with pocketsphinx; made once and kept.

`alignments/<set>.tsv` below the corpora root, or in the cache if the root is read-only, has a line for each utterance
that was aligned: its path below the set's parent folder, a digest of its words and of its file's size, and its phones,
100 per second. An utterance that cannot be aligned has no phones there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from upstreams.errors import UserError
from upstreams.files import atomic_write, text_lines
from upstreams.s3prl.audio import read_mono
from upstreams.s3prl.made_files import digest, place
from upstreams.versions import install_command

RATE = 100  # phones a second
Utterance = tuple[str, str]  # path below LibriSpeech's folder, words


def kept_file(root: Path, name: str) -> Path:
    """Return the file with the alignments of a set of LibriSpeech, such as dev-clean."""
    return place(root, f"alignments/{name}.tsv")


def line(audio: Path, name: str, words: str, phones: Sequence[str]) -> str:
    """Return an utterance's line of a kept file."""
    return f"{name}\t{_source(audio, words)}\t{' '.join(phones)}\n"


def phones_in_time(
    root: Path, libri: Path, set_name: str, utterances: Sequence[Utterance], count: int
) -> dict[str, list[str]]:
    """Return the phones, 100 per second, of the first `count` utterances that can be aligned, by path below `libri`.

    root: the corpora root; libri: the folder of LibriSpeech. Utterances without kept phones are aligned first. Raises
    UserError if pocketsphinx is needed and missing, and for audio that cannot be read.
    """
    path = kept_file(root, set_name)
    kept = {}
    for row in text_lines(path) if path.is_file() else ():
        name, *rest = row.split("\t")
        if len(rest) == 2:
            kept[name] = (rest[0], rest[1].split())
    found: dict[str, list[str]] = {}
    made: dict[str, str] = {}
    bar = tqdm(total=count, desc=f"phones of {set_name}", unit="utt", leave=False)
    try:
        for name, words in utterances:
            source, phones = kept.get(name, ("", []))
            if source != _source(libri / name, words):
                phones = aligned(read_mono(libri / name, dtype="float32")[0], words.lower())
                made[name] = line(libri / name, name, words, phones)
            if phones:
                found[name] = phones
                bar.update()
            if len(found) == count:
                break
    finally:  # what an interrupted run has aligned is kept, too
        bar.close()
        if made:
            old = {name: f"{name}\t{source}\t{' '.join(phones)}\n" for name, (source, phones) in kept.items()}
            with atomic_write(path) as temporary:
                temporary.write_text("".join((old | made).values()), encoding="utf-8")
    return found


def _source(audio: Path, words: str) -> str:
    return digest([words, audio.stat().st_size])[:16]


def aligned(audio: np.ndarray, text: str) -> list[str]:
    """Return a phone for each 10 ms; an empty list if the alignment fails or the lexicon lacks a word.

    audio: (samples,) at 16 kHz; text: its words in lower case. Raises UserError without pocketsphinx.
    """
    if importlib.util.find_spec("pocketsphinx") is None:
        raise UserError(f"phones in time need pocketsphinx: `{install_command('corpora')}` installs it")
    from pocketsphinx import Decoder

    samples = (audio * 32767).astype(np.int16).tobytes()
    decoder = Decoder(lm=None, loglevel="FATAL")
    try:
        decoder.set_align_text(text)
        for _ in range(2):  # aligns the words, then their phones
            decoder.start_utt()
            decoder.process_raw(samples, full_utt=True)
            decoder.end_utt()
            if decoder.get_alignment() is None:
                decoder.set_alignment()
        return [phone.name for word in decoder.get_alignment() for phone in word for _ in range(phone.duration)]
    except (RuntimeError, TypeError):
        return []
