"""KS: keywords by pseudo-speakers in the layout of Speech Commands v0.01."""

from __future__ import annotations

import hashlib
from itertools import count

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import OTHER_WORDS
from runners.corpora.mini.speakers import Speaker, pseudo_speakers
from runners.corpora.mini.synthesis import Noise, Synthesis
from runners.corpora.published import KEYWORDS
from upstreams.config import SAMPLE_RATE

TRAIN_ROOT = "speech_commands_v0.01"
TEST_ROOT = "speech_commands_test_set_v0.01"
_UNKNOWN_SHARE = 0.3
# The split is a function of the file name: SHA-1 of the part before _nohash_, modulo this, as a percentage (README of
# Speech Commands).
_MODULUS = 2**27
_BACKGROUND = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0, "steady_rain": 0.5, "far_traffic": 1.5}
_BACKGROUND_SECONDS = 20


def split_of(name: str) -> str:
    """Return the split to which the corpus assigns files that begin with `<name>_nohash_`."""
    percentage = int(hashlib.sha1(name.encode()).hexdigest(), 16) % _MODULUS * 100.0 / (_MODULUS - 1)
    return "dev" if percentage < 10 else "test" if percentage < 20 else "train"


def file_name(speaker: Speaker, split: str) -> str:
    """Return an eight-digit hexadecimal name for the speaker, one that the corpus assigns to `split`."""
    names = (hashlib.sha1(f"{speaker.name}/{attempt}".encode()).hexdigest()[:8] for attempt in count())
    return next(name for name in names if split_of(name) == split)


def plan(counts: dict[str, int], seed: int) -> list[Clip]:
    """Plan clips of 1 s, about `counts[split]` words for each split, and background noises.

    The test split has twelve folders of equal size.
    """
    clips: list[Clip] = []
    for split, speakers in pseudo_speakers().items():
        if split == "test":
            each = max(1, counts["test"] // 12)
            words = [word for word in KEYWORDS for _ in range(each)]
            words += [OTHER_WORDS[i % len(OTHER_WORDS)] for i in range(each)]
        else:
            unknown = max(1, round(counts[split] * _UNKNOWN_SHARE))
            words = [KEYWORDS[i % len(KEYWORDS)] for i in range(max(10, counts[split] - unknown))]
            words += [OTHER_WORDS[i % len(OTHER_WORDS)] for i in range(unknown)]
        turns = np.random.default_rng([seed, 40, len(clips)]).permutation(len(words))
        numbers: dict[tuple[str, str], int] = {}  # (word, speaker) -> number of its last clip
        for index, (word, turn) in enumerate(zip(words, turns, strict=True)):
            speaker = speakers[turn % len(speakers)]
            number = numbers[word, speaker.name] = numbers.get((word, speaker.name), -1) + 1
            label = word if word in KEYWORDS else "_unknown_"
            folder = f"{TEST_ROOT}/{label}" if split == "test" else f"{TRAIN_ROOT}/{word}"
            name = file_name(speaker, split)
            if split == "test" and label == "_unknown_":
                name = f"{word}_{name}"
            source = Synthesis(speaker, word, (seed, 41, len(clips), index), samples=SAMPLE_RATE)
            path = f"{folder}/{name}_nohash_{number}.wav"
            clips.append(Clip(path, path, source, ("ks",), split, speaker.name, label))
    for index, (name, colour) in enumerate(_BACKGROUND.items()):
        noise = Noise((seed, 42, index), _BACKGROUND_SECONDS * SAMPLE_RATE, colour)
        path = f"{TRAIN_ROOT}/_background_noise_/{name}.wav"
        clips.append(Clip(path, path, noise, ("ks",), "background", "", "_silence_"))
    for index in range(max(1, counts["test"] // 12)):
        noise = Noise((seed, 43, index), SAMPLE_RATE, 2.0 * (index % 5) / 4)
        path = f"{TEST_ROOT}/_silence_/{index:05d}.wav"
        clips.append(Clip(path, path, noise, ("ks",), "test", "", "_silence_"))
    return clips
