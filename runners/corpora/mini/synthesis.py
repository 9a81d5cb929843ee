"""Synthetic speech of the pseudo-speakers by SVOX Pico, in rooms and noise.

The utterances of a speaker vary in rate, pitch, level, room, channel and background noise, so that a class cannot be
recognised from the average spectrum alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from runners.corpora.mini.speakers import Speaker
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError

_M_PERTURB = -6


@dataclass(frozen=True)
class Prosody:
    """Pitch and rate of an utterance relative to the speaker's, as (mean, standard deviation), and its voice quality.

    tilt: dB per octave above 500 Hz. drive: gain of the waveform before saturation, 0 for none. lift: fraction of the
    words with a raised pitch.
    """

    pitch: tuple[float, float]
    rate: tuple[float, float]
    tilt: float = 0.0
    drive: float = 0.0
    lift: float = 0.0


READ = Prosody(pitch=(1.0, 0.05), rate=(1.0, 0.1))
EMOTION_PROSODIES = {
    "neu": Prosody(pitch=(1.0, 0.06), rate=(1.0, 0.07)),
    "hap": Prosody(pitch=(1.16, 0.07), rate=(1.08, 0.08), tilt=0.5, lift=0.35),
    "ang": Prosody(pitch=(1.05, 0.07), rate=(1.2, 0.09), tilt=1.0, drive=2.0),
    "sad": Prosody(pitch=(0.9, 0.06), rate=(0.84, 0.07), tilt=-1.0),
}


@dataclass(frozen=True)
class Synthesis:
    """An utterance to synthesise.

    samples: exact length, with the speech at a random position (Speech Commands), or None for speech with some silence
    on both sides. room: seed of reverberation and channel, which the utterances of one room share.
    """

    speaker: Speaker
    text: str
    seed: tuple[int, ...]
    prosody: Prosody = READ
    samples: int | None = None
    room: tuple[int, ...] | None = None

    def waveform(self) -> np.ndarray:
        """Return the audio, (samples,) float32 in [-1, 1] at 16 kHz; the same in every call."""
        rng = np.random.default_rng(self.seed)
        room = np.random.default_rng(self.room if self.room is not None else [*self.seed, 1])
        voice = _speak(self, rng)
        channel = _channel(room, self.prosody.tilt)
        if self.prosody.drive:
            level = np.sqrt(np.mean(voice**2)) + 1e-9
            voice = np.tanh(voice / level * self.prosody.drive / 3) * level
        voice = _convolve(voice, channel)
        before, after = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 3, size=2)
        if self.samples is not None:
            voice = voice[: self.samples]
            before = rng.integers(0, self.samples - len(voice) + 1)
            after = self.samples - len(voice) - before
        level = 10 ** (rng.uniform(-28, -22) / 20)
        speech = voice * (level / (np.sqrt(np.mean(voice**2)) + 1e-9))
        mixed = np.concatenate([np.zeros(before), speech, np.zeros(after)])
        snr = rng.uniform(15, 30)
        mixed += coloured_noise(rng, len(mixed), rng.uniform(0, 2)) * (level * 10 ** (-snr / 20))
        return np.clip(mixed, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Noise:
    """Background noise. `colour` is the exponent of its power spectrum: 0 white, 1 pink, 2 brown."""

    seed: tuple[int, ...]
    samples: int
    colour: float

    def waveform(self) -> np.ndarray:
        """Return the audio, (samples,) float32 in [-1, 1] at 16 kHz; the same in every call."""
        rng = np.random.default_rng(self.seed)
        level = 10 ** (rng.uniform(-50, -30) / 20)
        return np.clip(coloured_noise(rng, self.samples, self.colour) * level, -1, 1).astype(np.float32)


def coloured_noise(rng: np.random.Generator, samples: int, colour: float) -> np.ndarray:
    """Return Gaussian noise with RMS 1 whose power falls as 1 / f ** colour above 50 Hz, (samples,) float64."""
    size = _fast_length(samples)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    noise = np.fft.irfft(spectrum * frequency ** (-colour / 2), size)[:samples]
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-12)


@functools.cache
def _engine():
    from py_nanotts import NanoTTS

    return NanoTTS()


@contextlib.contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Let malloc return zeros inside the block (glibc only).

    Pico reads parts of its 2.5 MB arena before it writes them: on a used heap the last bits of the speech would differ.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    mallopt(_M_PERTURB, 0xFF)  # malloc fills memory with the complement of this byte
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def _speak(utterance: Synthesis, rng: np.random.Generator) -> np.ndarray:
    """Return Pico's speech, float64, resampled by the speaker's warp, without silence, room and noise."""
    speaker, prosody = utterance.speaker, utterance.prosody
    warp = speaker.warp
    pitch = speaker.pitch * rng.normal(*prosody.pitch)
    rate = float(np.clip(speaker.rate * rng.normal(*prosody.rate), 0.6, 1.6))
    text = utterance.text
    if prosody.lift:
        words = text.split()
        raised = rng.random(len(words)) < prosody.lift
        text = " ".join(
            f'<pitch level="{round(100 * pitch * 1.2)}">{word}</pitch>' if up else word
            for word, up in zip(words, raised, strict=True)
        )
    # At a volume below 1 Pico does not clip. The level is set afterwards.
    with _zeroed_memory():
        raw = _engine().speak(text, voice=speaker.voice, speed=rate / float(warp), pitch=pitch, volume=0.5)
    wave = np.frombuffer(raw, dtype="<i2").astype(np.float64) / 32768
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=0))
    if not len(loud):
        raise UserError(f"{speaker.name} synthesised no speech from {utterance.text!r}: the text should be words")
    return _resample(wave[max(loud[0] - 160, 0) : loud[-1] + 800], warp.denominator, warp.numerator)


def _resample(wave: np.ndarray, up: int, down: int) -> np.ndarray:
    from scipy.signal import resample_poly

    return resample_poly(wave, up, down)


def _fast_length(samples: int) -> int:
    from scipy.fft import next_fast_len

    return next_fast_len(samples, real=True)


def _channel(rng: np.random.Generator, tilt: float) -> np.ndarray:
    """Return an impulse response: a small room (T60 0.1 to 0.25 s) and a microphone with a smooth, uneven response."""
    samples = SAMPLE_RATE // 4
    decay = np.exp(-6.9 * np.arange(samples) / SAMPLE_RATE / rng.uniform(0.1, 0.25))
    tail = rng.standard_normal(samples) * decay
    tail[: SAMPLE_RATE // 500] = 0
    response = tail * 10 ** (-rng.uniform(8, 16) / 20) / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    octave = np.log2(np.maximum(np.fft.rfftfreq(2 * samples, 1 / SAMPLE_RATE), 62.5) / 500)
    gain = np.interp(octave, np.arange(-3, 5), rng.normal(0, 1, size=8)) + (tilt + rng.normal(0, 0.5)) * octave
    return np.fft.irfft(np.fft.rfft(response, 2 * samples) * 10 ** (gain / 20))[:samples]


def _convolve(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the convolution, cut 50 ms after the end of the voice."""
    size = _fast_length(len(wave) + len(response))
    convolved = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)
    return convolved[: len(wave) + SAMPLE_RATE // 20]
