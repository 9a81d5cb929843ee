"""Clips become audio files."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile

from runners.corpora.mini import queen
from runners.corpora.mini.clips import Clip, GameLine, write_clips
from tests.runners.corpora.mini import game
from upstreams.errors import UserError


@dataclass(frozen=True)
class Killed:
    def waveform(self) -> np.ndarray:
        os._exit(9)


@dataclass(frozen=True)
class Ramp:
    def waveform(self) -> np.ndarray:
        return np.linspace(-1, 1, 32_767 * 2 + 1, dtype=np.float32)


def clip(path: str, source) -> Clip:
    return Clip(path, path, source, ("ks",), "train", "x")


def test_both_formats_are_lossless_and_existing_files_are_kept(tmp_path):
    clips = [clip("a/one.wav", Ramp()), clip("b/one.flac", Ramp())]
    expected = np.arange(-32_767, 32_768, dtype=np.int16)
    for _ in range(2):
        assert write_clips(tmp_path, clips) == {"a/one.wav": len(expected), "b/one.flac": len(expected)}
        for path in ("a/one.wav", "b/one.flac"):
            data, rate = soundfile.read(tmp_path / path, dtype="int16")
            assert rate == 16_000 and np.array_equal(data, expected)
        clips[0] = clip("a/one.wav", Killed())


def test_a_killed_process_and_an_unreadable_stream_are_reported(tmp_path):
    with pytest.raises(UserError, match="was killed"):
        write_clips(tmp_path, [clip("one.wav", Killed())])
    container = tmp_path / "queen.1c"
    container.write_bytes(game.Container({"070001P1.SB": b"\x01" * 50}).data())
    (line,) = queen.read_container(container)
    with pytest.raises(UserError, match=r"070001P1\.SB"):
        write_clips(tmp_path, [clip("two.wav", GameLine(container, line))])
    assert not list(tmp_path.rglob("*.wav"))
