"""Clips, of which a corpus is planned as a list, and the workers that write them to audio files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from runners.corpora.mini import asterisk, queen
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import temporary_beside

_CHUNK = 16


class Source(Protocol):
    """Source of a clip's audio."""

    def waveform(self) -> np.ndarray:
        """Return the audio, (samples,) float32 in [-1, 1] at 16 kHz."""
        ...


@dataclass(frozen=True)
class GameLine:
    """A spoken line of the game, read from its container."""

    container: Path
    line: queen.Line

    def waveform(self) -> np.ndarray:
        from scipy.signal import resample_poly

        wave, rate = queen.read_audio(self.container, self.line)
        divisor = int(np.gcd(rate, SAMPLE_RATE))
        return np.clip(resample_poly(wave, SAMPLE_RATE // divisor, rate // divisor), -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Prompt:
    """A telephone prompt."""

    path: Path

    def waveform(self) -> np.ndarray:
        return asterisk.read_prompt(self.path)


@dataclass(frozen=True)
class Clip:
    """One audio file of the corpora: its path below the root, the source of its audio, and its tasks and split.

    `recording` identifies the audio: two clips of one recording hold the same samples, so a recording that one split
    holds out is held out under every path. `label` is the task's label or transcript.
    """

    path: str
    recording: str
    source: Source
    tasks: tuple[str, ...]
    split: str
    speaker: str
    label: str = ""


def _write(job: tuple[Path, Clip]) -> int:
    """Write a clip unless its file exists; return its number of samples."""
    import soundfile

    root, clip = job
    path = root / clip.path
    if path.exists():  # it is complete, even after an interrupted build: files are renamed when they are complete
        return int(soundfile.info(path).frames)
    wave = clip.source.waveform()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    kind = path.suffix[1:].upper()
    # Rounded here, so that the samples do not depend on how the library converts floats.
    samples = np.round(wave * 32767).astype(np.int16)
    soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format=kind)
    temporary.replace(path)
    return len(wave)


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent ends: if killed, it cannot stop its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def write_clips(root: Path, clips: Iterable[Clip]) -> dict[str, int]:
    """Write every clip below `root`, with one process for each processor; return path -> number of samples.

    Raises UserError if audio cannot be read or synthesised, or a process is killed.
    """
    from tqdm import tqdm

    clips = list(clips)
    samples: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_start_worker)
    try:
        jobs = ((root, clip) for clip in clips)
        results = zip(clips, pool.map(_write, jobs, chunksize=_CHUNK), strict=True)
        for clip, count in tqdm(results, total=len(clips), desc="audio files", unit="file"):
            samples[clip.path] = count
    except BrokenProcessPool:
        raise UserError(
            f"a process that wrote audio below {root} was killed, perhaps for lack of memory: "
            "run the same command again to resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return samples
