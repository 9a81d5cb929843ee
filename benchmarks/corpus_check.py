"""Time of `superbit corpus check` on a corpus of many files, the first time and with its headers cached.

    python benchmarks/corpus_check.py --out DIR [--files 30000] [--task asr] [--repeats 5]

Writes a LibriSpeech of short noise below DIR (once), and runs the command in new processes, as a user does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from runners.corpora.bucket_files import write_bucket_files

RATE = 16_000
WORDS = ["THE", "CAT", "SAT", "A", "DOG", "ZOO"]
PHONES = {"THE": "DH AH0", "CAT": "K AE1 T", "SAT": "S AE1 T", "A": "AH0", "DOG": "D AO1 G", "ZOO": "Z UW1"}
FILES_OF_CHAPTER = 50


def build(root: Path, files: int) -> None:
    """Write three sets with 90, 5 and 5 % of the files, their transcripts, lists of lengths, and a lexicon."""
    random = np.random.default_rng(0)
    sounds = []
    for length in range(16):  # 1 to 2.5 s; the files are copies of these
        path = root / f"{length}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * random.standard_normal(RATE + 1600 * length), RATE)
        sounds.append(path.read_bytes())
        path.unlink()
    for number, (name, share) in enumerate({"train-clean-100": 0.9, "dev-clean": 0.05, "test-clean": 0.05}.items()):
        for index in range(round(files * share)):
            chapter, position = divmod(index, FILES_OF_CHAPTER)
            folder = root / "LibriSpeech" / name / f"{number}{chapter // 2}" / str(chapter)
            folder.mkdir(parents=True, exist_ok=True)
            stem = f"{folder.parent.name}-{chapter}-{position:04d}"
            (folder / f"{stem}.flac").write_bytes(sounds[index % len(sounds)])
            with (folder / f"{folder.parent.name}-{chapter}.trans.txt").open("a") as file:
                file.write(f"{stem} {' '.join(random.choice(WORDS, 35))}\n")  # as long as LibriSpeech's
    (root / "lexicon").mkdir()
    lines = (f"{word} {phones}\n" for word, phones in PHONES.items())
    (root / "lexicon/librispeech-lexicon.txt").write_text("".join(lines))
    write_bucket_files(root / "LibriSpeech", root / "len_for_bucket", ("train-clean-100", "dev-clean", "test-clean"))


def check(root: Path, task: str, cache: Path) -> tuple[float, float]:
    """Return the seconds of one `superbit corpus check`, with the start of Python: on the clock, and of processors."""
    command = [sys.executable, "-m", "superbit", "corpus", "check", task, "--corpora", str(root), "--any-size"]
    begin, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SUPERBIT_CACHE": str(cache)})
    seconds, after = time.perf_counter() - begin, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--task", choices=["asr", "pr"], default="asr")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    root, cache = options.out / f"corpora-{options.files}", options.out / "cache"
    os.environ["SUPERBIT_CACHE"] = str(cache)
    if not (root / "len_for_bucket/test-clean.csv").exists():
        shutil.rmtree(root, ignore_errors=True)
        build(root, options.files)
    first, again = [], []
    for _ in range(options.repeats):
        shutil.rmtree(cache, ignore_errors=True)
        first.append(check(root, options.task, cache))
        again.append(check(root, options.task, cache))
    print(f"{options.files} files, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, measured in (("first", first), ("again", again)):
        seconds, used = (sorted(column) for column in zip(*measured, strict=True))
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{statistics.median(used):.2f} s of processor time"
        )


if __name__ == "__main__":
    main()
