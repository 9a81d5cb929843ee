"""Fixtures of the matrix's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.runners.matrix.fakes import FakeDownstream

SPEECH_COMMANDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keyword spotting in the layout of Speech Commands. Each word is a tone, so that a head can learn it."""
    root = tmp_path_factory.mktemp("corpora")
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    random = np.random.default_rng(0)

    def write(path: Path, index: int, seconds: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        time_axis = np.arange(int(16000 * seconds)) / 16000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * index) * time_axis)
        soundfile.write(path, tone + 0.01 * random.standard_normal(len(time_axis)), 16000)

    # The name before _nohash_ decides train or dev; 20 names hold both.
    for index, word in enumerate([*SPEECH_COMMANDS[:10], "bed"]):
        for n in range(20):
            write(train / word / f"{n:08x}_nohash_0.wav", index)
    write(train / "_background_noise_" / "noise.wav", 11, seconds=2.0)
    for index, word in enumerate(SPEECH_COMMANDS):
        write(test / word / f"{99:08x}_nohash_0.wav", index)
    return root


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDownstream:
    downstream = FakeDownstream(tmp_path)
    monkeypatch.setattr("runners.downstream.run.main", downstream.main)  # the workers are forks
    monkeypatch.setattr("runners.matrix.engines.local.free_memory", lambda: 1e15)  # it needs none
    return downstream
