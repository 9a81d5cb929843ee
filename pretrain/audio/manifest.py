"""Manifests in fairseq's format: a .tsv with the root folder in its first line, then lines `path TAB samples`.

A path `FILE:OFFSET:BYTES` names an audio file inside a larger file (pretrain/audio/shards.py).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from upstreams.audio_files import read_header
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, shown
from upstreams.files import text_lines


@dataclass(frozen=True)
class Manifest:
    """Utterances of one split: their root folder, their paths below it, and their lengths in samples at 16 kHz."""

    root: Path
    paths: tuple[str, ...]
    samples: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return sum(self.samples) / SAMPLE_RATE / 3600

    @staticmethod
    def read(path: Path) -> Manifest:
        """Read a .tsv file.

        Raises UserError if the file is missing or lists no audio, if a line is not `path TAB samples` (naming the first
        such line), and if the first audio file does not exist.
        """
        if not path.is_file():
            raise UserError(
                f"the manifest {path} is missing: expected a .tsv with the root folder in line 1, then path TAB samples"
            )
        root, *lines = text_lines(path)  # a file's name may hold any character but a line feed
        paths, samples = [], []
        for number, line in enumerate(lines, start=2):
            name, tab, count = line.rpartition("\t")
            if not tab or not re.fullmatch(r"[0-9]{1,15}", count):
                raise UserError(f"line {number} of {path} is {shown(line)}, but must be: path TAB number of samples")
            paths.append(name)
            samples.append(int(count))
        if not paths:
            raise UserError(f"the manifest {path} lists no audio file")
        try:
            first, _, _ = split_path(Path(root) / paths[0])
            is_there = first.is_file()
        except OSError:  # no path, such as a name of 300 characters
            first, is_there = Path(root) / paths[0], False
        if not is_there:
            raise UserError(f"{str(first)[-300:]}, the first file of {path}, is missing: has the root folder moved?")
        return Manifest(Path(root), tuple(paths), tuple(samples))


def split_path(path: Path) -> tuple[Path, int, int | None]:
    """Return the file that holds a path of a manifest, and the offset and size of the audio in bytes (None: all).

    No file is looked at: on a network disk, to ask for a name that does not exist takes as long as to open a file.
    """
    inside = re.fullmatch(r"(.+):(\d+):(\d+)", path.name)
    if inside is None:
        return path, 0, None
    return path.with_name(inside[1]), int(inside[2]), int(inside[3])


def load_audio(path: Path, start: int = 0, samples: int = -1) -> np.ndarray:
    """Return 16 kHz mono audio, (samples,) float32 in [-1, 1]: `samples` of it from `start` on, or all if -1.

    Raises UserError, naming the file, if it cannot be decoded, is not 16 kHz mono, ends too early, or holds
    NaN or infinite samples.
    """
    source: Path | io.BytesIO
    try:
        source, offset, size = split_path(path)
        if size is not None:
            with source.open("rb") as file:
                file.seek(offset)
                source = io.BytesIO(file.read(size))
        audio, rate = soundfile.read(source, frames=samples, start=start, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path} cannot be read as audio: {error}") from error
    if rate != SAMPLE_RATE or audio.ndim != 1:
        raise UserError(f"{path} has {rate} Hz and shape {audio.shape}, but {SAMPLE_RATE} Hz mono is expected")
    if samples == -1 and isinstance(source, Path) and (problem := read_header(source).problem):
        raise UserError(f"{path} cannot be read as audio: {problem}")
    if not np.isfinite(audio).all():
        raise UserError(f"{path} holds NaN or infinite samples")
    if len(audio) == 0 or (samples > 0 and len(audio) < samples):
        raise UserError(f"{path} ends after {start + len(audio)} samples, but {start + max(samples, 1)} are expected")
    return audio
