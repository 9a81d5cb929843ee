"""Runtimes in several threads and processes, batches, weighted sums; memory or threads that run out."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.packed import convert
from upstreams.packed.library import Model
from upstreams.packed.runtime import Runtime

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")

SMALL = EncoderConfig(layers=2, dim=48, heads=3, feed_forward_dim=80, position_groups=48, radius=9)
FAMILIES = {
    "sparseformer": SMALL,
    "relative": dataclasses.replace(SMALL, positions="relative"),
    "conformer": dataclasses.replace(SMALL, kind="conformer", activation="swish", kernel=5, positions="rotary"),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sessions")
    for name, encoder in FAMILIES.items():
        config = ModelConfig(name, FrontEndConfig(stem="convolution", width=8), encoder)
        convert.save(folder / name, convert.pack(quantized(config, "w1a1")), {})
    return {name: folder / name for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_four_runtimes_in_four_threads_equal_one(name: str, paths: dict[str, Path]) -> None:
    """One model, a session for each thread, of 1 to 3 threads of its own."""
    model = Model(paths[name])
    waveforms = [noise(1, 3_000 + 5_000 * n, seed=n)[0].numpy() for n in range(6)]
    expected = [np.stack(Runtime(model)(waveform)) for waveform in waveforms]
    wrong: list[str] = []

    def work(number: int) -> None:
        runtime = Runtime(model, threads=1 + number % 3)
        for turn in range(6):
            at = (turn * (number + 1) + number) % len(waveforms)
            if not np.array_equal(np.stack(runtime(waveforms[at])), expected[at]):
                wrong.append(f"thread {number}, waveform {at}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_and_a_weighted_sum_equal_single_utterances(name: str, paths: dict[str, Path]) -> None:
    waveforms = [noise(1, samples, seed=samples)[0].numpy() for samples in (1, 900, 20_000, 7_000, 13_000)]
    single = Runtime(paths[name])
    expected = [np.stack(single(waveform)) for waveform in waveforms]
    for threads in (1, 2, 4):
        for states, reference in zip(Runtime(paths[name], threads).batch(waveforms), expected, strict=True):
            np.testing.assert_array_equal(states, reference)
    weights = np.array([0.5, -1.0, 2.0], np.float32)
    for waveform, reference in zip(waveforms, expected, strict=True):
        total = single.weighted_sum(waveform, weights)
        np.testing.assert_allclose(total, np.tensordot(weights, reference, 1), atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="weights have shape"):
        single.weighted_sum(waveforms[0], [1.0])


def test_threads_start_again_in_a_forked_child(paths: dict[str, Path]) -> None:
    """As in the workers of a data loader: the child must not wait for the parent's threads."""
    runtime, waveform = Runtime(paths["sparseformer"], 3), noise(1, 30_000)[0].numpy()
    expected = np.stack(runtime(waveform))
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(np.stack(runtime(waveform)), expected) else 1)
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)


PROGRAM = """
import resource, sys
import numpy as np
from upstreams.packed.library import Model
from upstreams.packed.runtime import Runtime

def limit(megabytes):
    used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_that_runs_out_is_a_memory_error(threads: int, paths: dict[str, Path]) -> None:
    """The process goes on and computes what fits."""
    text = run(f"""
runtime = Runtime({str(paths["conformer"])!r}, {threads})
short, long = np.zeros(16_000, np.float32), np.zeros(12_000_000, np.float32)
expected = runtime(short)[-1]
states = np.zeros((3, runtime.frame_count(len(long)), 48), np.float32)
limit(20)
try:
    runtime.run([long], 2, [states])
except MemoryError as error:
    print(error)
assert (runtime(short)[-1] == expected).all()
""")
    assert "could not allocate" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
def test_fewer_threads_run_where_one_cannot_start(paths: dict[str, Path]) -> None:
    """A thread's stack is larger than what is left."""
    text = run(f"""
model, waveform = Model(__import__("pathlib").Path({str(paths["sparseformer"])!r})), np.ones(8_000, np.float32)
expected = Runtime(model)(waveform)[-1]
limit(6)
assert (Runtime(model, 64)(waveform)[-1] == expected).all()
print(len(__import__("os").listdir("/proc/self/task")), "threads")
""")
    assert text == "1 threads\n"


def test_a_file_that_shrinks_while_it_is_read_is_an_error(paths: dict[str, Path], tmp_path: Path) -> None:
    data = paths["sparseformer"].read_bytes()
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "short").write_bytes(data[:size])
        with pytest.raises(UserError, match="damaged"):
            Model(tmp_path / "short")
    with pytest.raises(UserError, match="does not exist"):
        Model(tmp_path / "none")
    with pytest.raises(UserError, match="is not a file"):
        Model(tmp_path)
