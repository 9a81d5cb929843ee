"""Reading audio for s3prl: what torchaudio 2.11 no longer has (load and save without FFmpeg, the sox effects)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from upstreams.errors import UserError


def load_audio(
    uri: str | os.PathLike[str], frame_offset: int = 0, num_frames: int = -1, **torchaudio_arguments: Any
) -> tuple[torch.Tensor, int]:
    """An audio file as float32 (channels, samples) in [-1, 1], and its sample rate in Hz.

    Raises UserError naming a file that is missing, corrupt or empty.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(uri, num_frames, frame_offset, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # without the path, which the rest of the text has
        raise UserError(f"cannot read the audio file {uri}: {reason}") from error
    if len(samples) == 0:
        raise UserError(f"the audio file {uri} holds no samples")
    return torch.from_numpy(samples.T.copy()), rate


def save_audio(uri: str | os.PathLike[str], src: torch.Tensor, sample_rate: int, **torchaudio_arguments: Any) -> None:
    """Write float (channels, samples) in [-1, 1] as an audio file of the kind that its name says."""
    import soundfile

    soundfile.write(uri, src.T.cpu().numpy(), sample_rate)


def apply_effects_tensor(
    tensor: torch.Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """The sox effects that the SUPERB tasks use: `channels 1`, `rate <Hz>` and `gain <dB>`.

    `tensor` is (channels, samples), or (samples, channels) without channels_first, and so is the result. Against
    the sox program the samples differ by 3e-8 where the rate stays and by 1.5e-4 where it changes. Raises
    UserError for any other effect.
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
            case _:
                raise UserError(f"no sox effect {' '.join(effect)!r} here: valid are channels 1, rate and gain")
    return (wav if channels_first else wav.T), sample_rate


def apply_effects_file(path: str, effects: Sequence[Sequence[str]]) -> tuple[torch.Tensor, int]:
    """`apply_effects_tensor` on an audio file: (channels, samples) and the sample rate in Hz."""
    return apply_effects_tensor(*load_audio(path), effects)
