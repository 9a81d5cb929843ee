"""What torchaudio dropped works again."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from upstreams.errors import UserError
from upstreams.s3prl import audio
from upstreams.s3prl.compat import torchaudio as compat_torchaudio


@pytest.fixture
def another_torchaudio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty package that replaces torchaudio; returns its folder."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "torchaudio"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


@pytest.mark.parametrize("error", ["OSError", "RuntimeError"])
def test_an_extension_that_does_not_load_is_replaced(another_torchaudio: Path, error: str) -> None:
    (another_torchaudio / "__init__.py").write_text("from . import _extension\nloaded = _extension\n")
    (another_torchaudio / "_extension.py").write_text(f"raise {error}('libc10_cuda.so')\n")
    torchaudio: Any = compat_torchaudio.import_torchaudio()
    assert torchaudio.loaded._IS_TORCHAUDIO_EXT_AVAILABLE is False
    assert torchaudio.loaded.fail_if_no_align(len) is len


def test_a_complete_torchaudio_is_left_unchanged(another_torchaudio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (another_torchaudio / "__init__.py").write_text("set_audio_backend = load = save = 'its own'\n")
    (another_torchaudio / "_extension.py").write_text("")
    (another_torchaudio / "sox_effects.py").write_text("")
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    compat_torchaudio.add_audio_backend_setter()
    compat_torchaudio.add_sox_effects()
    compat_torchaudio.read_audio_by_soundfile()
    import torchaudio

    assert torchaudio.set_audio_backend == torchaudio.load == torchaudio.save == "its own"
    assert "torchaudio.sox_effects" not in sys.modules


def test_sox_effects_of_keyword_spotting(tmp_path: Path) -> None:
    from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor

    time = np.arange(8000) / 8000
    stereo = np.stack([np.sin(2 * np.pi * 100 * time), np.zeros(8000)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000, subtype="FLOAT")
    effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    wav, rate = apply_effects_file(str(tmp_path / "stereo.wav"), effects)
    assert (wav.shape, rate) == ((1, 16000), 16000)
    middle = slice(1000, 15000)  # the resampling filter sees silence around the ends
    expected = 0.5 * 10 ** (-3 / 20) * np.sin(2 * np.pi * 100 * np.arange(16000) / 16000)
    assert np.abs(wav[0].numpy() - expected)[middle].max() < 2e-3
    same, _ = apply_effects_tensor(wav.T, 16000, [["channels", "1"]], channels_first=False)
    assert torch.equal(same, wav.T)
    with pytest.raises(UserError, match="'reverb 50'"):
        apply_effects_tensor(wav, rate, [["reverb", "50"]])


def test_audio_round_trip_and_unreadable_files(tmp_path: Path) -> None:
    import torchaudio

    wav = torch.linspace(-0.5, 0.5, 2 * 900).reshape(2, 900)
    path = tmp_path / "a.wav"
    torchaudio.save(str(path), wav, 16000)
    read, rate = torchaudio.load(path)
    assert rate == 16000 and read.dtype == torch.float32
    assert torch.allclose(read, wav, atol=1 / 2**15)
    part, _ = torchaudio.load(path, frame_offset=100, num_frames=50)
    assert torch.equal(part, read[:, 100:150])

    for name, content in (("corrupt.flac", b"fLaC no audio"), ("text.wav", b"RIFF"), ("none.wav", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            torchaudio.load(tmp_path / name)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(UserError, match=r"empty\.wav holds no samples"):
        audio.load_audio(tmp_path / "empty.wav")
