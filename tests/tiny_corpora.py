"""Tiny corpora of the seven tasks: a few short sounds in the layouts of the real corpora."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from runners.corpora.bucket_files import write_bucket_files
from runners.corpora.published import EMOTIONS, KEYWORDS, LIBRISPEECH_SETS

RATE = 16000
WORDS = {"A": "AH0", "CAT": "K AE1 T", "DOG": "D AO1 G", "SAT": "S AE1 T", "THE": "DH AH0", "ZOO": "Z UW1"}
SPEAKERS = {"train": "Ivy", "valid": "Aditi", "test": "Brian"}


class Sounds:
    """Writer of noisy tones. All tones differ, and they are the same in every run."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def write(self, path: Path, seconds: float | None = None, tone: float = 440.0) -> Path:
        seconds = seconds or float(self.random.uniform(0.3, 0.8))
        time = np.arange(round(seconds * RATE)) / RATE
        wave = 0.2 * np.sin(2 * np.pi * tone * time) + 0.05 * self.random.standard_normal(len(time))
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave.astype(np.float32), RATE)
        return path


def build(root: Path) -> Path:
    """Write all seven corpora below `root`; return `root`."""
    sounds = Sounds(0)
    librispeech(root, sounds)
    speech_commands(root, sounds)
    voxceleb(root, sounds)
    iemocap(root, sounds)
    fluent_speech_commands(root, sounds)
    snips(root, sounds)
    return root


def librispeech(root: Path, sounds: Sounds) -> None:
    """Write three sets with two chapters of three utterances, the lexicon, and the lists of lengths."""
    sentences = ["THE CAT SAT", "A DOG", "THE ZOO SAT A DOG"]
    for number, name in enumerate(LIBRISPEECH_SETS.values()):
        for chapter in (1, 2):
            folder = root / "LibriSpeech" / name / str(100 + number) / str(chapter)
            lines = []
            for index, words in enumerate(sentences):
                stem = f"{100 + number}-{chapter}-{index:04d}"
                sounds.write(folder / f"{stem}.flac", tone=200 + 100 * index)
                lines.append(f"{stem} {words}\n")
            (folder / f"{100 + number}-{chapter}.trans.txt").write_text("".join(lines))
    (root / "lexicon").mkdir()
    lexicon = [f"{word} {phones}\n" for word, phones in WORDS.items()]
    (root / "lexicon" / "librispeech-lexicon.txt").write_text("".join([*lexicon, "CAT K AA1 T\n"]))
    write_bucket_files(root / "LibriSpeech", root / "len_for_bucket", LIBRISPEECH_SETS.values())


def _names(part: str, number: int) -> Iterable[str]:
    """Yield file names that Speech Commands assigns to the split `part` by their hash."""
    found = 0
    for index in range(10_000):
        speaker = hashlib.md5(f"{part}{index}".encode()).hexdigest()[:8]
        percentage = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
        if ("valid" if percentage < 10 else "test" if percentage < 20 else "train") == part and found < number:
            found += 1
            yield f"{speaker}_nohash_0.wav"


def speech_commands(root: Path, sounds: Sounds) -> None:
    """Write ten keywords, one other word, background noise, and the twelve folders of the test set."""
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    names = [*_names("train", 2), *_names("valid", 1)]
    for index, word in enumerate((*KEYWORDS, "cat")):
        for name in names:
            sounds.write(train / word / name, tone=200 + 50 * index)
    sounds.write(train / "_background_noise_" / "hum.wav", seconds=1.2)
    for index, word in enumerate((*KEYWORDS, "_unknown_", "_silence_")):
        sounds.write(test / word / "0a0b0c0d_nohash_0.wav", tone=200 + 50 * index)


def voxceleb(root: Path, sounds: Sounds) -> None:
    """Write two speakers, one of them below test/wav."""
    lines = []
    for half, speaker in (("dev", "id10001"), ("test", "id10270")):
        for index, split in enumerate((1, 1, 2, 3)):
            name = f"{speaker}/video{index}/00001.wav"
            sounds.write(root / "VoxCeleb1" / half / "wav" / name, tone=300 if half == "dev" else 600)
            lines.append(f"{split} {name}\n")
    (root / "VoxCeleb1" / "veri_test_class.txt").write_text("".join(lines))


def iemocap(root: Path, sounds: Sounds) -> None:
    """Write two sessions; each is the test set of its fold and the training set of the other fold."""
    rows: dict[int, list[dict[str, str]]] = {}
    for session in (1, 2):
        rows[session] = []
        for index, label in enumerate([*EMOTIONS, "neu", "sad"]):
            dialog = f"Ses0{session}F_impro01"
            name = f"Session{session}/sentences/wav/{dialog}/{dialog}_F{index:03d}.wav"
            sounds.write(root / "IEMOCAP" / name, tone=200 + 100 * EMOTIONS[label])
            rows[session].append({"path": name, "label": label, "speaker": f"Ses0{session}F"})
    for session in (1, 2):
        folder = root / "IEMOCAP" / "meta_data" / f"Session{session}"
        folder.mkdir(parents=True)
        for kind, content in (("train", rows[3 - session]), ("test", rows[session])):
            text = json.dumps({"labels": EMOTIONS, "meta_data": content})
            (folder / f"{kind}_meta_data.json").write_text(text)


def fluent_speech_commands(root: Path, sounds: Sounds) -> None:
    """Write four utterances of two intents for each split."""
    folder = root / "fluent_speech_commands_dataset"
    intents = [("activate", "lights", "kitchen"), ("increase", "volume", "none")]
    (folder / "data").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        with (folder / "data" / f"{split}_data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["", "path", "speakerId", "transcription", "action", "object", "location"])
            for index in range(4):
                path = f"wavs/speakers/{split}speaker/{index}.wav"
                sounds.write(folder / path, tone=300 + 300 * (index % 2))
                writer.writerow([index, path, f"{split}speaker", "words, words", *intents[index % 2]])


def snips(root: Path, sounds: Sounds) -> None:
    """Write one speaker for each split, whose sentences have one slot; the list of slots ends with a newline."""
    folder = root / "SNIPS"
    sentences = [
        "BOS PLAY JAZZ NOW EOS\tO O genre O PlayMusic",
        "BOS WEATHER IN NEW YORK EOS\tO O O city city GetWeather",
        "BOS PLAY QUEEN EOS\tO O artist PlayMusic",
    ]
    lines = []
    for split, speaker in SPEAKERS.items():
        for index, sentence in enumerate(sentences):
            uid = f"{speaker}-snips-{split}-{index}"
            sounds.write(folder / split / f"{uid}.wav", seconds=1.2, tone=200 + 100 * index)
            lines.append(f"{uid} {sentence}\n")
    (folder / "all.iob.snips.txt").write_text("".join(lines))
    (folder / "slots.txt").write_text("slot\nartist\ncity\ngenre\n")
