"""The pseudo-speakers: SVOX Pico's voices with ten vocal-tract warps and five manners each.

A warp of a voice is in one split only, so a held-out speaker differs from every training speaker of its voice by at
least 4 % in all formants, whatever its manner. The tasks about words use the two English voices: the others read
English by the rules of their own languages, so their words are other words.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

VOICES = ("en-GB", "en-US", "de-DE", "es-ES", "fr-FR", "it-IT")
ENGLISH = ("en-GB", "en-US")
# The waveform is resampled by the warp, which shifts formants and F0 together.
WARPS = tuple(Fraction(percent, 100) for percent in (82, 86, 90, 94, 98, 102, 107, 112, 117, 122))
# F0 beside the warp, and speaking rate.
_MANNERS = {"a": (1.0, 1.0), "b": (0.88, 1.06), "c": (1.13, 0.94), "d": (0.94, 0.88), "e": (1.06, 1.13)}
# Of each five warps of a voice, one is for test and one for dev. The position rotates over the voices, so that no warp
# is in one split only.
_CYCLE = 5
# Warps of ER's speakers, who speak nothing else: between those above.
_EMOTIONAL_WARPS = tuple(Fraction(percent, 100) for percent in (84, 92, 100, 109, 119))


@dataclass(frozen=True)
class Speaker:
    """A pseudo-speaker. pitch and rate are relative to the voice's own, before the warp."""

    voice: str
    warp: Fraction
    pitch: float
    rate: float
    manner: str

    @property
    def name(self) -> str:
        return f"{self.voice}-{round(100 * self.warp):03d}{self.manner}"


def pseudo_speakers(voices: tuple[str, ...] = ENGLISH) -> dict[str, list[Speaker]]:
    """Return the speakers of each split: 30 of each voice's 50 are for train, 10 for dev, 10 for test."""
    splits: dict[str, list[Speaker]] = {"train": [], "dev": [], "test": []}
    for warp_number, warp in enumerate(WARPS):
        for manner in _MANNERS:
            for voice in voices:
                position = (warp_number - VOICES.index(voice)) % _CYCLE
                role = {0: "test", 2: "dev"}.get(position, "train")
                splits[role].append(_speaker(voice, warp, manner))
    return splits


def emotional_speakers() -> list[tuple[Speaker, Speaker]]:
    """Return the two English speakers of each of ER's five sessions."""
    return [
        (
            _speaker(ENGLISH[0], _EMOTIONAL_WARPS[(session + 1) % _CYCLE], "a"),
            _speaker(ENGLISH[1], _EMOTIONAL_WARPS[(session + 2) % _CYCLE], "a"),
        )
        for session in range(_CYCLE)
    ]


def _speaker(voice: str, warp: Fraction, manner: str) -> Speaker:
    pitch, rate = _MANNERS[manner]
    return Speaker(voice, warp, pitch, rate, manner)
