"""The runtime without torch against the torch model, and streaming against whole utterances."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig, preset
from upstreams.errors import UserError
from upstreams.packed import convert, kernels
from upstreams.packed.library import levels
from upstreams.packed.runtime import Runtime
from upstreams.packed.streaming import Stream

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")

SMALL = EncoderConfig(
    kind="sparseformer", layers=3, dim=84, heads=3, feed_forward_dim=100, radius=7, position_groups=84
)


def packed_file(path: Path, config: ModelConfig | str, bits: str, overrides: dict[str, str] | None = None) -> Path:
    convert.save(path, convert.pack(quantized(config, bits, overrides)), {})
    return path


def variant(front_end: dict[str, object] | None = None, **encoder: object) -> ModelConfig:
    front = dataclasses.replace(FrontEndConfig(), **(front_end or {}))
    return ModelConfig("variant", front, dataclasses.replace(SMALL, **encoder))


CONVOLUTION = {"stem": "convolution", "width": 5}
CASES = {
    "w1a1": (variant(), "w1a1", {}),
    "w1a1, post-norm, full attention, grouped positions": (
        variant(CONVOLUTION, kind="transformer", norm="post", position_groups=4, position_kernel=8),
        "w1a1",
        {},
    ),
    "w1a1, positions by spectra": (
        variant(kind="transformer", norm="post", position_groups=3, position_kernel=51),
        "w1a1",
        {},
    ),
    "w1a32, quantized positions by spectra": (
        variant(kind="transformer", norm="post", position_groups=7, position_kernel=48),
        "w1a32",
        {"positions": "w4a32"},
    ),
    "w1a1, rotary, 20 ms frames": (variant({**CONVOLUTION, "subsampling": 2}, positions="rotary"), "w1a1", {}),
    "w1a1, relative": (variant(positions="relative", activation="gelu"), "w1a1", {}),
    "w1a1, front-end and positions too": (variant(CONVOLUTION), "w1a1", {"front_end": "w1a1", "positions": "w4a8"}),
    "w1a32, swish": (variant(activation="swish", positions="none"), "w1a32", {"feed_forward": "w4a32"}),
    "w1a8": (variant(CONVOLUTION), "w1a8", {}),
    "w2a4": (variant(), "w2a4", {}),
    "w1a1, conformer, relative, quantized depthwise": (
        variant(CONVOLUTION, kind="conformer", positions="relative", activation="swish", kernel=9),
        "w1a1",
        {"depthwise": "w1a1"},
    ),
    "w1a1, squeezeformer, rotary": (
        variant(kind="squeezeformer", positions="rotary", activation="swish", kernel=9, reduce=1, recover=2),
        "w1a1",
        {"resampling": "w1a32"},
    ),
    "w1a1, waveform": (
        variant({"kind": "waveform", "normalisation": "none", "width": 20}, kind="transformer", norm="post"),
        "w1a1",
        {},
    ),
    "w1a32, waveform with layer norms": (
        variant({"kind": "waveform", "normalisation": "utterance", "width": 24, "feature_norm": "layer"}),
        "w1a32",
        {"front_end": "w2a32"},
    ),
}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_hidden_states_equal_those_of_the_quantized_model(
    case: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same front-end output on: rounding errors of the FFT may cross a threshold, and do with 8 bits."""
    monkeypatch.setenv(kernels.VARIABLE, level)
    model = quantized(*CASES[case])
    convert.save(tmp_path / "packed.safetensors", convert.pack(copy.deepcopy(model)), {})
    runtime = Runtime(tmp_path / "packed.safetensors")
    # With several levels, or a quantized front-end, a rounding error may move an input by one step.
    allowed = 0.2 if any(text in case for text in ("a8", "a4", "front-end")) else 0
    for samples in (1, 401, 31_217):
        waveform = noise(1, samples)
        embedded, frames = model.embed(waveform)
        ours = runtime.front_end(waveform[0].numpy())
        np.testing.assert_allclose(ours, embedded[0], atol=0.5 if "front-end" in case else 2e-4)
        assert len(ours) == int(frames) == runtime.frame_count(samples)
        states, reference = runtime.encode(embedded[0].numpy()), model(waveform)
        assert len(states) == len(reference)
        for state, expected in zip(states, reference, strict=True):
            wrong = np.abs(state - expected[0].numpy()).max(1) > 1e-3
            assert wrong.mean() <= allowed
        assert len(runtime(waveform[0].numpy())[-1]) == int(frames)


@torch.no_grad()
def test_frames_of_strong_and_weak_bins_equal_those_of_the_quantized_model(tmp_path: Path) -> None:
    """As in speech, where rounding errors of an FFT in single precision are large in weak bins and flip signs."""
    model = quantized(dataclasses.replace(preset("sparseformer_dn_mini"), name="speech"), "w1a1")
    convert.save(tmp_path / "packed.safetensors", convert.pack(copy.deepcopy(model)), {})
    runtime = Runtime(tmp_path / "packed.safetensors")
    time = torch.arange(32_000) / 16_000
    tones = sum(torch.sin(2 * torch.pi * hertz * time) * 0.1 for hertz in (140, 280, 420, 560))
    waveform = (tones * (1 + torch.sin(2 * torch.pi * 3 * time)) + noise(1, 32_000)[0] * 1e-4)[None]
    embedded, _ = model.embed(waveform)
    np.testing.assert_allclose(runtime.front_end(waveform[0].numpy()), embedded[0], atol=1e-5)
    shifted = torch.cat([torch.zeros(1, 3), waveform], 1)[:, 3:]  # other addresses in memory
    for state, again, expected in zip(runtime(waveform[0].numpy()), model(shifted), model(waveform), strict=True):
        np.testing.assert_allclose(state, expected[0], atol=1e-3)
        np.testing.assert_allclose(again, expected, atol=1e-3)


def test_the_runtime_imports_no_torch(tmp_path: Path) -> None:
    """Its peak memory stays below 60 MiB."""
    path = packed_file(tmp_path / "packed.safetensors", "sparseformer_dn_mini", "w1a1")
    program = (
        "import sys, numpy as np\n"
        "from upstreams.packed.runtime import Runtime\n"
        "from upstreams.packed.streaming import Stream\n"
        f"runtime = Runtime({str(path)!r})\n"
        "states = runtime(np.zeros(16_000, np.float32))\n"
        "streamed = Stream(runtime).feed(np.zeros(1_000, np.float32))\n"
        "assert states[-1].shape == (25, 128)\n"
        "assert not {'torch', 's3prl', 'safetensors'} & set(sys.modules)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 * 1024


STREAMED = [
    name
    for name, (config, _, _) in CASES.items()
    if config.encoder.kind == "sparseformer" and config.front_end.kind == "log_mel"
]


@pytest.mark.parametrize("case", STREAMED)
def test_streamed_frames_equal_those_of_the_whole_utterance(case: str, tmp_path: Path) -> None:
    runtime = Runtime(packed_file(tmp_path / "packed.safetensors", *CASES[case]))
    rng = np.random.default_rng(0)
    for samples, largest in ((50_013, 9_000), (20_000, 50), (30_000, 30_000), (700, 100), (1, 1)):
        waveform = noise(1, samples)[0].numpy()
        whole = runtime(waveform)
        stream = Stream(runtime)
        parts: list[list[np.ndarray]] = [[] for _ in whole]
        fed = 0
        while fed < samples:
            count = int(rng.integers(0, largest + 1)) or 1
            given = stream.feed(waveform[fed : fed + count])
            fed = min(samples, fed + count)
            for layer, state in enumerate(given):
                parts[layer].append(state)
                # Each frame is returned as soon as it is final.
                final = stream.final[layer]
                assert final == 0 or stream.samples_needed(layer, final - 1) <= fed
                assert stream.samples_needed(layer, final) > fed
        for layer, state in enumerate(stream.flush()):
            streamed = np.concatenate([*parts[layer], state])
            assert streamed.shape == whole[layer].shape and stream.final[layer] == len(streamed)
            np.testing.assert_allclose(streamed, whole[layer], atol=1e-4)


def test_the_memory_of_a_stream_does_not_grow(tmp_path: Path) -> None:
    runtime = Runtime(packed_file(tmp_path / "packed.safetensors", variant(), "w1a1"))
    stream = Stream(runtime)
    sizes = []
    for _ in range(40):
        stream.feed(noise(1, 8_000)[0].numpy())
        sizes.append(stream.state_bytes())
    assert max(sizes[20:]) <= max(sizes[5:20]) * 1.1
    # One call with ten minutes keeps no more memory than many calls with half a second.
    stream.feed(np.zeros(600 * 16_000, np.float32))
    assert stream.state_bytes() <= max(sizes[5:20]) * 1.1


def test_unsupported_models_and_waveforms_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "packed.safetensors"
    with pytest.raises(UserError, match="whole utterance"):
        Stream(Runtime(packed_file(path, variant(kind="transformer"), "w1a1")))
    with pytest.raises(UserError, match="normalised by the utterance"):
        Stream(Runtime(packed_file(path, variant({"normalisation": "utterance"}), "w1a1")))
    with pytest.raises(UserError, match="conformer"):
        Stream(Runtime(packed_file(path, preset("conformer_mini"), "w1a1")))
    runtime = Runtime(packed_file(path, variant(), "w1a1"))
    for waveform in (np.zeros((1, 5), np.float32), np.zeros(5, np.int16), np.array([0.0, np.nan]), np.zeros(0)):
        with pytest.raises(UserError, match="waveform"):
            runtime(waveform)
    stream = Stream(runtime)
    stream.flush()
    with pytest.raises(UserError, match="flushed"):
        stream.feed(np.zeros(3, np.float32))
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    with pytest.raises(UserError, match="compiled kernel"):
        Runtime(path)
