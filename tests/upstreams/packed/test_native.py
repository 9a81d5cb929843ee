"""Products, elementwise functions and threads of the native kernel against slow references, at every level."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upstreams.packed.layout import pad_to_block, to_float_blocks
from upstreams.packed.linear import BinaryBits, BinaryLinear, ByteLinear, LayerTensors, SignLinear
from upstreams.packed.native import Native, native_levels
from upstreams.quantization.spec import Bits

pytestmark = pytest.mark.skipif(not native_levels(), reason="the package was built without a compiler")

ROWS = st.integers(1, 14)
WIDTHS = st.one_of(st.integers(1, 100), st.sampled_from([144, 168, 196, 256, 768]))
SEEDS = st.integers(0, 2**31)

every_level = pytest.mark.parametrize("level", native_levels())


def random_packed(
    rng: np.random.Generator, inputs: int, outputs: int, activation: int, non_negative: bool = False
) -> tuple[LayerTensors, np.ndarray]:
    """Return a layer with a scale for each output, and its weights as +1 and -1."""
    signs = rng.integers(0, 2, (outputs, inputs)) * 2 - 1
    codes = np.packbits(signs > 0, axis=1, bitorder="little")
    floats = rng.standard_normal((3, outputs)).astype(np.float32)
    alpha = None if activation == 32 else np.float32(rng.uniform(0.02, 1.0))
    beta = rng.standard_normal(inputs).astype(np.float32) if activation == 1 and not non_negative else None
    scale = np.abs(floats[0]) + np.float32(0.01)
    return LayerTensors(Bits(1, activation), inputs, codes, scale, floats[1], alpha, beta, non_negative), signs


def random_input(rng: np.random.Generator, rows: int, columns: int, non_negative: bool) -> np.ndarray:
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    return np.maximum(x, 0) if non_negative else x


def levels_of(x: np.ndarray, packed: LayerTensors) -> np.ndarray:
    """Return the whole numbers of a layer's quantized input."""
    if packed.bits.activation == 8:
        low, high = (0, 255) if packed.non_negative else (-128, 127)
        return np.clip(np.round(x / packed.alpha), low, high).astype(np.int64)
    if packed.non_negative:
        return (x / packed.alpha > 0.5).astype(np.int64)
    return np.where(x + packed.beta >= 0, 1, -1)


def expected_output(x: np.ndarray, packed: LayerTensors, signs: np.ndarray) -> np.ndarray:
    whole = levels_of(x, packed) @ signs.T.astype(np.int64)
    return whole * (packed.scale.astype(np.float64) * packed.alpha) + packed.bias


@every_level
@settings(max_examples=60, deadline=None)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), SEEDS)
def test_binary_product(level: str, rows: int, inputs: int, outputs: int, non_negative: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed, signs = random_packed(rng, inputs, outputs, 1, non_negative)
    x = random_input(rng, rows, inputs, non_negative)
    layer = BinaryLinear(packed)
    np.testing.assert_allclose(layer(x, Native.at(level)), expected_output(x, packed, signs), rtol=1e-5, atol=1e-5)
    # With a scale of 1 and no bias the outputs are the whole numbers themselves.
    unit = pad_to_block(np.ones(outputs, np.float32))
    bits = layer.binarize(x, Native.at(level))
    whole = Native.at(level).binary_to_floats(bits, layer.weights, outputs, layer.offset, unit, unit * 0)
    reference = levels_of(x, packed) @ signs.T
    assert (whole == (2 * reference if non_negative else reference)).all()


@every_level
@settings(max_examples=60, deadline=None)
@given(ROWS, WIDTHS, st.integers(1, 4), st.integers(1, 70), st.booleans(), SEEDS)
def test_binary_product_to_bits(
    level: str, rows: int, inputs: int, heads: int, dim: int, strict: bool, seed: int
) -> None:
    """The bits equal the comparison of the float output with the threshold. Each head begins a new word."""
    rng = np.random.default_rng(seed)
    packed, signs = random_packed(rng, inputs, heads * dim, 1, strict)
    x = random_input(rng, rows, inputs, strict)
    threshold = float(rng.uniform(0, 2)) if strict else 0.0
    bits = BinaryBits(packed, threshold, strict, heads)(x, Native.at(level))
    unpacked = np.unpackbits(bits.view(np.uint8).reshape(rows, heads, -1), axis=2, bitorder="little")
    y = expected_output(x, packed, signs).reshape(rows, heads, dim)
    assert (unpacked[..., :dim] == (y > threshold if strict else y >= threshold)).all()
    assert not unpacked[..., dim:].any()


@every_level
@settings(max_examples=40, deadline=None)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), SEEDS)
def test_byte_product(level: str, rows: int, inputs: int, outputs: int, non_negative: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed, signs = random_packed(rng, inputs, outputs, 8, non_negative)
    x = random_input(rng, rows, inputs, non_negative) * 20
    # Halves are rounded to even; values outside the range are clipped.
    x[0, : min(inputs, 6)] = (np.array([0.5, 1.5, 2.5, 1e9, 254.5, 0.0]) * packed.alpha)[:inputs]
    y = ByteLinear(packed)(x, Native.at(level))
    np.testing.assert_allclose(y, expected_output(x, packed, signs), rtol=1e-5, atol=1e-4)


@every_level
@settings(max_examples=40, deadline=None)
@given(ROWS, WIDTHS, WIDTHS, SEEDS)
def test_sign_product(level: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed, signs = random_packed(rng, inputs, outputs, 32)
    x = random_input(rng, rows, inputs, False)
    expected = x.astype(np.float64) @ signs.T * packed.scale + packed.bias
    np.testing.assert_allclose(SignLinear(packed)(x, Native.at(level)), expected, rtol=1e-4, atol=1e-4)


@every_level
@settings(max_examples=30, deadline=None)
@given(ROWS, WIDTHS, WIDTHS, st.integers(1, 12), st.tuples(st.integers(0, 9), st.integers(0, 9)), SEEDS)
def test_float_product_over_overlapping_windows(
    level: str, rows: int, channels: int, outputs: int, window: int, zeros: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows + window - 1, channels)).astype(np.float32)
    weight = rng.standard_normal((outputs, window * channels)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    y = Native.at(level).float_product(x, to_float_blocks(weight), outputs, pad_to_block(bias), window)
    rows_of = np.stack([x[t : t + window].ravel() for t in range(rows)]).astype(np.float64)
    np.testing.assert_allclose(y, rows_of @ weight.T + bias, rtol=1e-3, atol=1e-3)

    x[: zeros[0]] = x[max(0, len(x) - zeros[1]) :] = 0
    zeros = min(zeros[0], len(x)), min(zeros[1], max(0, len(x) - zeros[0]))
    arguments = (x, to_float_blocks(weight), outputs, pad_to_block(bias), window)
    np.testing.assert_array_equal(
        Native.at(level).float_product(*arguments, zeros), Native.at(level).float_product(*arguments)
    )


@every_level
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 9), st.integers(1, 2), SEEDS)
def test_depthwise_norm_and_gelu(level: str, frames: int, channels: int, taps: int, stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((frames + taps - 1, channels)).astype(np.float32)
    weights, bias = rng.standard_normal((taps, channels)).astype(np.float32), x[0] * 2
    windows = np.lib.stride_tricks.sliding_window_view(x, taps, axis=0)[::stride].astype(np.float64)
    expected = np.einsum("tck,kc->tc", windows, weights) + bias
    np.testing.assert_allclose(Native.at(level).depthwise(x, weights, bias, stride), expected, atol=1e-4)
    centred = x - x.mean(1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weights[0] + bias
    np.testing.assert_allclose(Native.at(level).layer_norm(x, weights[0], bias), expected, rtol=1e-4, atol=1e-4)
    y = x.copy()
    Native.at(level).gelu(y)
    np.testing.assert_allclose(y, [[v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in x], atol=1e-6)


@every_level
def test_results_depend_neither_on_threads_nor_on_the_number_of_rows(level: str) -> None:
    """Exactly: streaming relies on it."""
    rng = np.random.default_rng(0)
    x = random_input(rng, 75, 196, False)
    kinds = ((BinaryLinear, 1), (ByteLinear, 8), (SignLinear, 32))
    layers = [kind(random_packed(rng, 196, 168, bits)[0]) for kind, bits in kinds]
    weight, bias = to_float_blocks(rng.standard_normal((168, 196)).astype(np.float32)), np.zeros(176, np.float32)
    whole = [layer(x, Native.at(level)) for layer in layers] + [Native.at(level).float_product(x, weight, 168, bias)]
    threaded = [layer(x, Native.at(level, 3)) for layer in layers] + [
        Native.at(level, 3).float_product(x, weight, 168, bias)
    ]
    alone = [layer(x[31:32], Native.at(level)) for layer in layers] + [
        Native.at(level).float_product(x[31:32], weight, 168, bias)
    ]
    for first, second, single in zip(whole, threaded, alone, strict=True):
        assert (first == second).all()
        assert (first[31] == single[0]).all()


def test_threads_start_again_in_a_forked_child() -> None:
    """As in the workers of a data loader: the child must not wait for the parent's threads."""
    rng = np.random.default_rng(0)
    layer, x = SignLinear(random_packed(rng, 64, 64, 32)[0]), random_input(rng, 200, 64, False)
    level = native_levels()[0]
    expected = layer(x, Native.at(level, 3))
    child = os.fork()
    if child == 0:
        os._exit(0 if (layer(x, Native.at(level, 3)) == expected).all() else 1)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)


@every_level
def test_pointers_of_any_alignment(level: str) -> None:
    rng = np.random.default_rng(1)
    packed, signs = random_packed(rng, 168, 144, 1)
    x = random_input(rng, 7, 168, False)
    shifted = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    assert not shifted.flags.aligned
    np.testing.assert_allclose(
        BinaryLinear(packed)(shifted, Native.at(level)), expected_output(x, packed, signs), atol=1e-4
    )
