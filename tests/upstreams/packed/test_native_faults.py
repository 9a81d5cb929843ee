"""What the native kernel does when memory or threads run out, and with arrays and numbers that it cannot take."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from upstreams.errors import UserError
from upstreams.packed.layout import to_float_blocks
from upstreams.packed.linear import FloatLinear
from upstreams.packed.native import Native, native_levels

pytestmark = pytest.mark.skipif(not native_levels(), reason="the package was built without a compiler")

every_level = pytest.mark.parametrize("level", native_levels())

# `limit(n)` leaves the process n more megabytes of memory.
PROGRAM = """
import resource, sys
import numpy as np
from upstreams.packed.native import Native, native_levels

def limit(megabytes):
    used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_raises_memory_error_when_memory_runs_out(threads: int) -> None:
    """Attention needs a copy of the keys and values; the process goes on and computes what fits."""
    done = run(f"""
key, query = np.zeros((3, 200_000, 1, 64), np.float32), np.zeros((3, 1, 1, 64), np.float32)
lengths = np.full(3, 200_000, np.int64)
for level in native_levels():
    kernel = Native.at(level, {threads})
    kernel.gelu(np.zeros(10_000, np.float32))  # the threads have started
limit(30)
for level in native_levels():
    kernel = Native.at(level, {threads})
    try:
        kernel.float_attention(query, key, key, lengths, 0, None, (1.0, 1.0, 0, 1.0))
    except MemoryError as error:
        print(error)
    short = np.ones((3, 4, 1, 8), np.float32)
    assert (kernel.float_attention(short, short, short, lengths * 0 + 4, 0, None, (1.0, 1.0, 0, 1.0)) == 1).all()
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("float_attention could not allocate") == len(native_levels())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
def test_the_kernel_uses_fewer_threads_where_one_cannot_start() -> None:
    """A thread's stack is larger than what is left."""
    done = run("""
x = np.linspace(-1, 1, 400_000, dtype=np.float32)
expected = x.copy()
Native.at(native_levels()[0], 1).gelu(expected)
limit(5)
for _ in range(2):
    y = x.copy()
    Native.at(native_levels()[0], 64).gelu(y)
    assert (y == expected).all()
print(len(__import__("os").listdir("/proc/self/task")), "threads")
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 threads\n"


def test_an_array_that_is_not_contiguous_or_of_another_type_is_refused() -> None:
    kernel, weight = Native.at(native_levels()[0]), np.arange(48, dtype=np.float32).reshape(6, 8)
    layer = FloatLinear(weight, np.zeros(6, np.float32))
    x = np.ones((8, 5), np.float32).T
    assert not x.flags.c_contiguous
    with pytest.raises(ValueError, match=r"float_product.*\(5, 8\) is not C-contiguous"):
        layer(x, kernel)
    with pytest.raises(TypeError, match="float64 instead of float32"):
        layer(np.ones((5, 8)), kernel)
    with pytest.raises(ValueError, match="width of 7, but the weights have 8"):
        layer(np.ones((5, 7), np.float32), kernel)
    np.testing.assert_allclose(layer(np.ascontiguousarray(x), kernel)[0], weight.sum(1))
    read_only = np.ones((5, 8), np.float32)
    read_only.flags.writeable = False
    np.testing.assert_allclose(layer(read_only, kernel)[0], weight.sum(1))
    with pytest.raises(ValueError, match="relative scores reach 1 frames"):
        q = np.zeros((1, 4, 1, 8), np.float32)
        kernel.float_attention(q, q, q, np.array([4]), 0, None, (1.0, 1.0, 0, 1.0), np.zeros((1, 4, 3), np.float32))


@every_level
@pytest.mark.parametrize("at", [0, 40, -1])
def test_nan_does_not_become_a_bit_a_byte_or_a_weight_of_attention(level: str, at: int) -> None:
    kernel = Native.at(level)
    x = np.random.default_rng(0).standard_normal((1, 9, 1, 37)).astype(np.float32)
    y = x.copy()
    y.reshape(-1)[at] = np.nan
    rows, lengths = y.reshape(9, 37), np.array([9])
    scales = (1.0, 1 / 255, 255, 1.0)
    bits = np.zeros((1, 9, 1, 2), np.uint32)
    relative = np.zeros((1, 9, 17), np.float32)
    relative.reshape(-1)[8] = np.nan
    calls = [
        lambda: kernel.binarize(rows, None),
        lambda: kernel.binarize(rows, np.zeros(37, np.float32), 0.5, True),
        lambda: kernel.quantize_bytes(rows, 0.1, -128, 127),
        lambda: kernel.float_attention(y, x, x, lengths, 0, None, scales),
        lambda: kernel.float_attention(x, y, x, lengths, 0, 8, (1.0, 1.0, 0, 1.0)),
        lambda: kernel.binary_attention(bits, bits, bits, 37, lengths, 0, None, (1.0, 0.1, 1.0), relative),
    ]
    for call in calls:
        with pytest.raises(UserError, match="NaN"):
            call()
    weights = to_float_blocks(np.ones((3, 37), np.float32))
    assert np.isnan(kernel.float_product(rows, weights, 3, np.zeros(16, np.float32))).any(1).sum() == 1
    kernel.gelu(rows)
    assert np.isnan(rows).sum() == 1


@every_level
def test_masked_keys_weigh_exactly_nothing(level: str) -> None:
    """However large their values are, and however small the step of quantized probabilities is."""
    x = np.ones((1, 40, 1, 16), np.float32)
    value = x.copy()
    value[0, 9:] = 3e38
    lengths = np.array([9])
    for relative in (None, np.zeros((1, 40, 79), np.float32)):
        for radius in (None, 4):
            out = Native.at(level).float_attention(x, x, value, lengths, 0, radius, (1.0, 1.0, 0, 1.0), relative)
            np.testing.assert_allclose(out[0, :9], 1, rtol=1e-6)
            tiny = (1.0, 1e-41, 255, 1.0)  # every key that is visible reaches the highest level
            whole = Native.at(level).float_attention(x, x, x, lengths, 0, radius, tiny, relative)
            counts = [min(9, i + 5) - max(0, i - 4) if radius else 9 for i in range(9)]
            np.testing.assert_array_equal(whole[0, :9, 0, 0], [255 * count for count in counts])
            bits = np.full((1, 40, 1, 1), 0xFFFF, np.uint32)
            scales = (1.0, 1e-41, 1.0)
            out = Native.at(level).binary_attention(bits, bits, bits, 16, lengths, 0, radius, scales, relative)
            np.testing.assert_array_equal(out[0, :9, 0, 0], counts)


@every_level
def test_a_radius_beyond_the_integers_sees_every_key(level: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 40, 2, 16)).astype(np.float32)
    lengths, scales = np.array([40]), (0.3, 1.0, 0, 1.0)
    whole = Native.at(level).float_attention(x, x, x, lengths, 0, None, scales)
    for radius in (40, 2**31, 2**63 - 1, 2**64 + 1, 10**30):
        np.testing.assert_array_equal(Native.at(level).float_attention(x, x, x, lengths, 0, radius, scales), whole)
