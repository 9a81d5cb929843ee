"""Tiny corpora of query-by-example, speaker verification and diarization, in the layouts of the real corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from tests.tiny_corpora import RATE, Sounds


def build(root: Path) -> Path:
    """Write all three corpora below `root`; return `root`."""
    quesst(root / "quesst14Database")
    verification(root / "VoxCeleb1", Sounds(5))
    mixtures(root / "Libri2Mix_diarization")
    return root


def _tones(pitches: tuple[int, ...], seed: int, rate: int = 8000) -> np.ndarray:
    time = np.arange(int(0.15 * rate)) / rate
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])
    return (wave + 0.003 * np.random.default_rng(seed).standard_normal(len(wave))).astype(np.float32)


def quesst(root: Path) -> None:
    """Write six utterances of melodies at 8 kHz, two queries for each split, and a file of another language."""
    melodies = {"a": (400, 900, 1500, 600), "b": (1700, 300, 800, 2500), "c": (500, 2200, 350, 1200)}
    documents = ("a", "b", "c", "ab", "cb", "cc")
    queries = {"dev": ("a", "b"), "eval": ("c", "b")}

    def write(name: str, melody: str, seed: int) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, _tones(sum((melodies[part] for part in melody), ()), seed), 8000)

    lists: dict[str, list[str]] = {"utterances": [], "dev": [], "eval": []}
    for index, melody in enumerate(documents):
        write(f"Audio/quesst14_{index:05d}.wav", melody, index)
        lists["utterances"].append(f"quesst14Database/Audio/quesst14_{index:05d}.wav\tnnenglish")
    lists["utterances"].append("quesst14Database/Audio/quesst14_09999.wav\talbanian")
    for split, melody_of in queries.items():
        truth = root / f"scoring/groundtruth_quesst14_{split}"
        truth.mkdir(parents=True)
        rows, terms = [], []
        for index, melody in enumerate(melody_of):
            query = f"quesst14_{split}_{index:04d}"
            write(f"{split}_queries/{query}.wav", melody, 100 + index)
            lists[split].append(f"quesst14Database/{split}_queries/{query}.wav nnenglish")
            terms.append(f'<term termid="{query}"><termtext>{query}</termtext></term>')
            for number, document in enumerate(documents):
                if melody in document:
                    rows.append(f"LEXEME quesst14_{number:05d} 1 0.0 1.2 {query} <NA> <NA> <NA>\n")
        (truth / f"quesst14_{split}.rttm").write_text("".join(rows))
        (truth / f"quesst14_{split}.tlist.xml").write_text(f"<termlist>{''.join(terms)}</termlist>")
        (truth / "quesst14.ecf.xml").write_text("<ecf/>")
    for part, lines in lists.items():
        (root / f"scoring/language_key_{part}.lst").write_text("".join(f"{line}\n" for line in lines))


def verification(root: Path, sounds: Sounds) -> None:
    """Write two speakers for training and two for test, with trials of the same and of different speakers."""
    for half, speakers in (("dev", ("id10001", "id10002")), ("test", ("id10270", "id10271"))):
        for tone, speaker in enumerate(speakers):
            for video in range(2):
                sounds.write(root / half / "wav" / speaker / f"video{video}/00001.wav", 1.0, 300 + 400 * tone)
    one, two = ("id10270/video{}/00001.wav", "id10271/video{}/00001.wav")
    trials = [(1, one, one), (0, one, two), (1, two, two), (0, two, one)]
    lines = [f"{label} {first.format(0)} {second.format(1)}\n" for label, first, second in trials]
    (root / "veri_test.txt").write_text("".join(lines))


def mixtures(root: Path) -> None:
    """Write two mixtures of two speakers for each split, with Kaldi's files."""
    time = np.arange(RATE) / RATE
    for split in ("train", "dev", "test"):
        folder = root / split
        tables: dict[str, list[str]] = {
            name: [] for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur", "rttm")
        }
        for index in range(2):
            recording = f"{split}{index}"
            spans = {"A": (0.0, 0.6), "B": (0.4, 1.0 - 0.1 * index)}
            wave = 0.01 * np.random.default_rng(index).standard_normal(RATE)
            for pitch, (speaker, (begin, end)) in zip((300, 900), spans.items(), strict=True):
                wave += 0.2 * np.sin(2 * np.pi * pitch * time) * ((begin <= time) & (time < end))
                utterance, name = f"{recording}_{speaker}", f"spk{speaker}{index}"
                tables["segments"].append(f"{utterance} {recording} {begin:.2f} {end:.2f}")
                tables["utt2spk"].append(f"{utterance} {name}")
                tables["spk2utt"].append(f"{name} {utterance}")
                tables["rttm"].append(f"SPEAKER {recording} 1 {begin:.2f} {end - begin:.2f} <NA> <NA> {name} <NA>")
            path = root / "wav" / f"{recording}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE)
            tables["wav.scp"].append(f"{recording} {path}")
            tables["reco2dur"].append(f"{recording} 1.0")
        folder.mkdir(parents=True)
        for name, lines in tables.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines))
