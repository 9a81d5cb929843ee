"""sox's silence effect without sox."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from upstreams.errors import UserError
from upstreams.s3prl import audio


def test_silence_is_removed_as_sox_removes_it(tmp_path: Path) -> None:
    """Noise of random lengths and levels around the threshold; compared with the sox program if it is installed."""
    random = np.random.default_rng(0)
    for _ in range(8):
        levels = random.choice([0, 2e-4, 9e-4, 1.1e-3, 5e-3, 0.3], size=random.integers(1, 8))
        wave = np.concatenate([level * random.standard_normal(random.integers(200, 6000)) for level in levels])
        wave = np.clip(wave, -1, 1).astype(np.float32)
        effect = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]
        cut, rate = audio.apply_effects_tensor(torch.from_numpy(wave)[None], 16000, [effect])
        assert rate == 16000 and cut.shape[0] == 1 and cut.shape[1] <= len(wave)
        np.testing.assert_array_equal(cut[0], _silence_step_by_step(wave, 320, 1600, 0.001))
        if shutil.which("sox"):
            soundfile.write(tmp_path / "in.wav", wave, 16000, subtype="FLOAT")
            command = ["sox", tmp_path / "in.wav", "-e", "floating-point", "-b", "32", tmp_path / "out.wav", *effect]
            subprocess.run(command, check=True, capture_output=True)
            np.testing.assert_allclose(cut[0], soundfile.read(tmp_path / "out.wav", dtype="float32")[0], atol=1e-6)
    with pytest.raises(UserError, match="silence 1 D P -1 D P"):
        audio.apply_effects_tensor(torch.zeros(1, 9), 16000, [["silence", "1", "0.1", "0.1%"]])


def _silence_step_by_step(wave: np.ndarray, window: int, duration: int, threshold: float) -> list[float]:
    """Reference, sample by sample: search for sound, copy it, search again after silence."""
    kept: list[float] = []
    held: list[float] = []
    recent: list[float] = []
    is_copying = False
    for sample in wave:
        recent = [*recent[-window + 1 :], float(sample) ** 2]
        is_loud = (sum(recent) / window) ** 0.5 > threshold
        if not is_copying:
            held = [*held, sample] if is_loud else []
            if len(held) >= duration:
                kept, held, is_copying = kept + held, [], True
        elif is_loud:
            kept, held = [*kept, *held, sample], []
        else:
            held = [*held, sample]
            if len(held) >= duration:
                held, recent, is_copying = [], [], False
    return kept + held if is_copying else kept
