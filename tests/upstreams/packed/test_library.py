"""The compiled library through its Python binding: memory that runs out, arrays, padding and layers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized
from upstreams.config import EncoderConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.packed import convert, kernels
from upstreams.packed.library import address, call, levels
from upstreams.packed.runtime import Runtime
from upstreams.packed.streaming import Stream

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")

limits_memory = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
every_level = pytest.mark.parametrize("level", levels())

SMALL = EncoderConfig(layers=2, dim=36, heads=3, feed_forward_dim=40, position_groups=36, radius=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One packed model with binary attention and one with attention in floating point."""
    folder = tmp_path_factory.mktemp("packed")
    paths = {bits: folder / f"{bits}.safetensors" for bits in ("w1a1", "w1a32")}
    for bits, path in paths.items():
        convert.save(path, convert.pack(quantized(ModelConfig("small", encoder=SMALL), bits)), {})
    return paths


# `limit(n)` leaves the process n more kibibytes of memory, `limit(None)` all.
PROGRAM = """
import os, resource, sys
import numpy as np
from upstreams.packed import library
from upstreams.packed.runtime import Runtime
from upstreams.packed.streaming import Stream

def limit(kibibytes):
    used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if kibibytes is None else (used + kibibytes) * 1024, hard))

path = sys.argv[1]
"""


def run(program: str, path: Path) -> str:
    # One arena: a thread's own would hold 64 MiB that the limit does not see.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", PROGRAM + program, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@limits_memory
def test_memory_that_runs_out_in_any_thread_of_a_batch_is_a_memory_error(files: dict[str, Path]) -> None:
    """The same session then computes what fits, and all of it once there is more memory."""
    printed = run(
        """
model = library.Model(library.Path(path))
samples = [(np.random.default_rng(n).standard_normal(480_000) / 9).astype(np.float32) for n in range(3)]
expected = Runtime(model).batch(samples, 2)
states = [np.empty_like(state) for state in expected]
failed = 0
for kibibytes in (0, 300, 900, 2_000):
    runtime = Runtime(model, 3)
    runtime(samples[0][:160])
    limit(kibibytes)
    try:
        runtime.run(samples, 2, states)
    except MemoryError as error:
        failed += "superbit_forward_batch could not allocate" in str(error)
    limit(None)
    short = runtime(samples[0][:16_000])
    runtime.run(samples, 2, states)
    assert all((ours == theirs).all() for ours, theirs in zip(states, expected))
print(failed)
""",
        files["w1a32"],
    )
    assert int(printed) >= 1


@limits_memory
def test_a_model_or_session_that_does_not_fit_is_a_memory_error(files: dict[str, Path]) -> None:
    printed = run(
        """
packed = open(path, "rb").read()
level = library.levels()[0]
failed = 0
for kibibytes in range(0, 400, 20):
    limit(kibibytes)
    try:
        kept = library.Session(library.Model(packed), 1, level)
    except MemoryError:
        failed += 1
    limit(None)
print(failed)
""",
        files["w1a1"],
    )
    assert int(printed) >= 1


@limits_memory
def test_a_stream_ends_with_the_call_that_failed(files: dict[str, Path]) -> None:
    """Some of its layers have taken the chunk and others have not: more frames would be wrong."""
    printed = run(
        """
stream = Stream(Runtime(path))
stream.feed(np.zeros(100, np.float32))
chunk = np.zeros(4_800_000, np.float32)
limit(300)
try:
    library.call("stream_feed", stream.handle, library.address(chunk), len(chunk))
except MemoryError as error:
    print(error)
limit(None)
for call in (lambda: stream.feed(chunk[:100]), stream.flush):
    try:
        call()
    except ValueError as error:
        print(error)
""",
        files["w1a1"],
    )
    assert "superbit_stream_feed could not allocate" in printed
    assert printed.count("the stream has ended") == 2


def test_arrays_of_another_type_or_order_give_the_same_states(files: dict[str, Path]) -> None:
    runtime = Runtime(files["w1a1"])
    plain = noise(1, 8_000)[0].numpy()
    strided, read_only = np.repeat(plain, 3)[::3], plain.copy()
    read_only.flags.writeable = False
    odd = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view(np.float32)
    waveforms = [strided, plain[::-1].copy()[::-1], plain.astype(np.float64), plain.astype(">f4"), read_only, odd]
    assert not strided.flags.c_contiguous and not odd.flags.aligned
    expected, weights = runtime(plain), np.array([0.2, 0.3, 0.5])
    for waveform in waveforms:
        np.testing.assert_array_equal(runtime(waveform), expected)
        np.testing.assert_array_equal(runtime.front_end(waveform), runtime.front_end(plain))
        stream, whole = Stream(runtime), Stream(runtime)
        np.testing.assert_array_equal(stream.feed(waveform)[0], whole.feed(plain)[0])
    embedded = runtime.front_end(plain)
    for frames in (np.asfortranarray(embedded), embedded.astype(np.float64), embedded.repeat(2, 1)[:, ::2]):
        np.testing.assert_array_equal(runtime.encode(frames), expected)
    many = np.repeat(weights, 2)[::2]
    np.testing.assert_array_equal(runtime.weighted_sum(plain, many), runtime.weighted_sum(plain, weights.tolist()))


@pytest.mark.parametrize("bits", ["w1a1", "w1a32"])
@pytest.mark.parametrize("kernel", kernels.available())
@torch.no_grad()
def test_padding_weighs_exactly_nothing(
    kernel: str, bits: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with loud padding equals one with silent padding, and with the compiled kernel each utterance alone."""
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    model, lengths = convert.load(files[bits]), torch.tensor([16_000, 5_000, 1])
    silent = noise(3, 16_000)
    for n, length in enumerate(lengths):
        silent[n, length:] = 0
    expected = model(silent, lengths)
    loud = silent.clone()
    for n, length in enumerate(lengths):
        loud[n, length:] = 3e38 if kernel != "torch" else 1e3
    for ours, theirs in zip(model(loud, lengths), expected, strict=True):
        assert torch.equal(ours, theirs)
    for n, length in enumerate(lengths.tolist()):
        frames = int(model.frame_count(torch.tensor(length)))
        for ours, alone in zip(expected, model(silent[n : n + 1, :length]), strict=True):
            assert not ours[n, frames:].any()
            if kernel != "torch":
                assert torch.equal(ours[n, :frames], alone[0])


@every_level
@pytest.mark.parametrize("bits", ["w1a1", "w1a32"])
def test_keys_outside_the_radius_weigh_exactly_nothing(
    bits: str, level: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.VARIABLE, level)
    runtime = Runtime(files[bits])
    frames = np.random.default_rng(0).standard_normal((90, SMALL.dim)).astype(np.float32)
    far, sees = frames.copy(), SMALL.position_kernel // 2 + 1 + SMALL.layers * SMALL.radius
    far[60:] *= np.float32(1e15)
    assert sees < 60
    for near, other in zip(runtime.encode(frames), runtime.encode(far), strict=True):
        np.testing.assert_array_equal(near[: 60 - sees], other[: 60 - sees])
        assert (near[60:] != other[60:]).any()


@pytest.mark.parametrize("layers", [99, -1, 3, 2**31 - 1, -(2**31)])
def test_the_library_refuses_layers_that_the_model_does_not_have(layers: int, files: dict[str, Path]) -> None:
    """Without the checks in Python before it: programs in C call it directly."""
    runtime = Runtime(files["w1a1"])
    x = noise(1, 800)[0].numpy()
    states = np.full((3, runtime.frame_count(800), SMALL.dim), 7, np.float32)
    with pytest.raises(UserError, match="argument is not valid"):
        runtime.run([x], layers, [states])
    with pytest.raises(UserError, match="argument is not valid"):
        call("encode", runtime.session.handle, address(states[0]), len(states[0]), layers, address(states))
    assert (states == 7).all()
    stream, count = Stream(runtime), ctypes.c_int64(5)
    with pytest.raises(UserError, match="layers is"):
        stream.samples_needed(layers, 0)
    assert stream.library.superbit_stream_frames(stream.handle, layers, count) is None and count.value == 0
    assert stream.library.superbit_stream_samples_needed(stream.handle, layers, 0) == 0
