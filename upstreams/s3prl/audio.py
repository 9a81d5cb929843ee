"""Audio functions that torchaudio 2.11 lacks and s3prl calls: load and save without FFmpeg, and the sox effects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from upstreams.audio_files import read_header
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError


def load_audio(
    uri: str | os.PathLike[str], frame_offset: int = 0, num_frames: int = -1, **torchaudio_arguments: Any
) -> tuple[torch.Tensor, int]:
    """Return an audio file as float32 (channels, samples) in [-1, 1], and its sample rate in Hz.

    Raises UserError if the file is missing, corrupt or empty, or holds fewer samples than its header states.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(uri, num_frames, frame_offset, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # error_string leaves out the path, which this message names
        raise UserError(f"cannot read the audio file {uri}: {reason}") from error
    if len(samples) == 0:
        raise UserError(f"the audio file {uri} holds no samples")
    is_whole = (frame_offset, num_frames) == (0, -1) and isinstance(uri, str | os.PathLike)
    if is_whole and (problem := read_header(os.fspath(uri)).problem):
        raise UserError(f"cannot read the audio file {uri}: {problem}")
    return torch.from_numpy(samples.T.copy()), rate


def load_mono(uri: str | os.PathLike[str], rate: int | None = SAMPLE_RATE) -> tuple[torch.Tensor, int]:
    """Return an audio file as `load_audio` does, (1, samples) and the sample rate.

    Raises UserError, naming the file, also if it has more than one channel or another rate than `rate` Hz (None: any):
    s3prl's datasets would take it for longer, or for slower, speech.
    """
    samples, found = load_audio(uri)
    if samples.shape[0] != 1 or rate not in (None, found):
        wanted = "one channel" if rate is None else f"{rate} Hz mono"
        raise UserError(f"{uri} has {found} Hz and {samples.shape[0]} channels: {wanted} is expected")
    return samples, found


def read_mono(file: str | os.PathLike[str], **arguments: Any) -> tuple[np.ndarray, int]:
    """Return what soundfile.read returns; raise UserError, naming the file, unless it is 16 kHz mono."""
    import soundfile

    try:
        samples, rate = soundfile.read(file, **arguments)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot read the audio file {file}: {getattr(error, 'error_string', error)}") from None
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise UserError(f"{file} has {rate} Hz and shape {samples.shape}: {SAMPLE_RATE} Hz mono is expected")
    return samples, rate


def save_audio(uri: str | os.PathLike[str], src: torch.Tensor, sample_rate: int, **torchaudio_arguments: Any) -> None:
    """Write float (channels, samples) in [-1, 1] as an audio file; the format follows from the file name."""
    import soundfile

    soundfile.write(uri, src.T.cpu().numpy(), sample_rate)


def apply_effects_tensor(
    tensor: torch.Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """Apply the sox effects that the SUPERB tasks use: `channels 1`, `rate <Hz>`, `gain <dB>`, one form of `silence`.

    `tensor` and the result are (channels, samples), or (samples, channels) without channels_first; the second result
    is the sample rate in Hz. The samples differ from those of the sox program by 3e-8, and by 1.5e-4 after a change
    of rate. Raises UserError for any other effect.
    """
    import torchaudio

    wav = tensor if channels_first else tensor.T
    for effect in effects:
        match list(effect):
            case ["channels", "1"]:
                wav = wav.mean(dim=0, keepdim=True)
            case ["rate", rate]:
                wav = torchaudio.functional.resample(wav, sample_rate, int(rate))
                sample_rate = int(rate)
            case ["gain", decibel]:
                wav = wav * 10 ** (float(decibel) / 20)
            case ["silence", "1", seconds, percent, "-1", same_seconds, same_percent] if (seconds, percent) == (
                same_seconds,
                same_percent,
            ) and wav.shape[0] == 1:
                kept = without_silence(wav[0].numpy(), sample_rate, float(seconds), float(percent.rstrip("%")) / 100)
                wav = torch.from_numpy(kept)[None]
            case _:
                raise UserError(
                    f"the sox effect {' '.join(effect)!r} is not supported: valid are channels 1, rate, gain and, with "
                    "one channel, silence 1 D P -1 D P"
                )
    return (wav if channels_first else wav.T), sample_rate


def without_silence(samples: np.ndarray, rate: int, seconds: float, threshold: float) -> np.ndarray:
    """Return (samples,) without every silence of at least D seconds, as sox's effect `silence 1 D P -1 D P` does.

    A sample is silent if its root mean square over the last 20 ms is at most `threshold`. Copying begins where D
    seconds in a row are not silent, and ends where D seconds in a row are; then the search restarts (sox, silence.c).
    """
    window, duration = rate // 50, int(seconds * rate + 0.5)
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    indices = np.arange(len(samples))
    kept, start = [], 0
    while start < len(samples):
        # The window is empty at the start of each search.
        begins = np.maximum(indices[start:] + 1 - window, start)
        loud = np.sqrt(np.maximum(energy[start + 1 :] - energy[begins], 0) / window) > threshold
        first = _first_run(loud, duration)
        if first is None:
            break
        stop = _first_run(~loud[first + duration :], duration)
        if stop is None:
            kept.append(samples[start + first :])
            break
        stop += first + duration
        kept.append(samples[start + first : start + stop])
        start += stop + duration
    return np.concatenate([samples[:0], *kept])


def _first_run(true: np.ndarray, length: int) -> int | None:
    """Return the index at which the first `length` true values in a row begin, or None."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], true, [False]])))
    begins, ends = edges[::2], edges[1::2]
    long_enough = np.flatnonzero(ends - begins >= length)
    return int(begins[long_enough[0]]) if len(long_enough) else None


def apply_effects_file(path: str, effects: Sequence[Sequence[str]]) -> tuple[torch.Tensor, int]:
    """Return an audio file after `apply_effects_tensor`: (channels, samples), and the sample rate in Hz."""
    return apply_effects_tensor(*load_audio(path), effects)
