"""Decoded audio is cached in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runners.features.audio_cache import cached_audio


def test_files_are_decoded_once_up_to_a_limit(tmp_path: Path) -> None:
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for value, path in enumerate(paths):
        soundfile.write(path, np.full(100, 0.25 * (1 + value)), 16000)
    with cached_audio(max_bytes=600):  # one file's float32 samples
        first, rate = soundfile.read(str(paths[0]), dtype="float32")
        first[:] = 0  # the caller's copy
        assert soundfile.read(str(paths[1]), dtype="float32")[0][0] == 0.5
        for path in paths:
            path.unlink()
        kept, _ = soundfile.read(str(paths[0]), dtype="float32")
        assert (kept[0], kept.dtype, rate) == (0.25, np.float32, 16000)
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(str(paths[1]), dtype="float32")  # there was no room for it
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(str(paths[0]), 10, dtype="float32")  # a part is not cached
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(str(paths[0]), dtype="float32")
