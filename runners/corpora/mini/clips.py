"""A corpus before it is written: a list of clips, and the workers that turn them into audio files."""

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
from runners.corpora.mini.synthesis import SAMPLE_RATE
from upstreams.errors import UserError

UNFINISHED = ".tmp"
_CHUNK = 16


class Source(Protocol):
    """Where a clip's sound comes from."""

    def waveform(self) -> np.ndarray:
        """(samples,) float32 in [-1, 1] at 16 kHz."""
        ...


@dataclass(frozen=True)
class GameLine:
    """A line of the game, from its container."""

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
    """One audio file of the corpora: where it lies below the root, what it sounds like, what it is for.

    `recording` names what is heard: two clips of one recording hold the same sound, and whatever one split holds out
    is held out under every path. `label` is the task's label or transcript.
    """

    path: str
    recording: str
    source: Source
    tasks: tuple[str, ...]
    split: str
    speaker: str
    label: str = ""


def _write(job: tuple[Path, Clip]) -> int:
    """Write a clip unless its file is there; return its samples."""
    import soundfile

    root, clip = job
    path = root / clip.path
    if path.exists():  # written whole by a build that was interrupted: files get their names when they are complete
        return int(soundfile.info(path).frames)
    wave = clip.source.waveform()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    kind = path.suffix[1:].upper()
    # Rounded here: what is written does not depend on the library's way of converting floats.
    samples = np.round(wave * 32767).astype(np.int16)
    soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format=kind)
    temporary.replace(path)
    return len(wave)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone (killed, it could not stop its workers)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write_clips(root: Path, clips: Iterable[Clip]) -> dict[str, int]:
    """Write every clip below `root`, in as many processes as there are processors; return samples by path.

    Raises UserError where a sound cannot be read or made, or a process dies.
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
            f"a process that wrote audio below {root} was killed, perhaps for want of memory: run it again to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return samples
