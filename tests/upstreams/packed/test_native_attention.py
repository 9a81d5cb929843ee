"""Attention of the native kernel against a slow reference, at every level."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upstreams.packed.native import Native, native_levels

pytestmark = pytest.mark.skipif(not native_levels(), reason="the package was built without a compiler")


def slow_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    length: int,
    first: int,
    radius: int | None,
    score_scale: float,
    quantize: Callable[[np.ndarray], np.ndarray],
    relative: np.ndarray | None,
) -> np.ndarray:
    """Return one utterance's attention, computed frame by frame.

    query, key, value: (frames, heads, dim). relative: (heads, queries, offsets).
    """
    out = np.zeros(query.shape)
    for i in range(len(query)):
        low = 0 if radius is None else max(0, first + i - radius)
        high = length if radius is None else min(length, first + i + radius + 1)
        if low >= high:
            continue
        for head in range(query.shape[1]):
            score = score_scale * (key[low:high, head].astype(np.float64) @ query[i, head])
            if relative is not None:
                score += relative[head, i, np.arange(low, high) - first - i + relative.shape[-1] // 2]
            e = np.exp(score - score.max())
            out[i, head] = quantize(e / e.sum()) @ value[low:high, head]
    return out


def bits_of(signs: np.ndarray) -> np.ndarray:
    """Return (..., dim) of +1 and -1 as bits (..., words)."""
    padded = np.zeros((*signs.shape[:-1], -(-signs.shape[-1] // 32) * 32), bool)
    padded[..., : signs.shape[-1]] = signs > 0
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("level", native_levels())
@settings(max_examples=90, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 3),
    st.one_of(st.integers(1, 70), st.sampled_from([36, 49, 64, 100, 130])),
    st.one_of(st.none(), st.integers(1, 40)),
    st.booleans(),
    st.sampled_from([1, 8, 32]),
    st.integers(0, 2**31),
)
def test_attention(
    level: str, keys: int, heads: int, dim: int, radius: int | None, is_relative: bool, bits: int, seed: int
) -> None:
    """Two utterances, the second one shorter. The first query is at any key, as in streaming."""
    rng = np.random.default_rng(seed)
    first = int(rng.integers(0, keys))
    queries = int(rng.integers(1, keys - first + 1))
    lengths = np.array([keys, rng.integers(1, keys + 1)], np.int64)
    relative = rng.standard_normal((2, heads, queries, 2 * keys + 1)).astype(np.float32) if is_relative else None
    score_scale = float(rng.choice([1.3 / math.sqrt(dim), 0.01]))  # with 0.01 distant keys count too
    # An irrational scale, so that no probability equals a threshold.
    alpha = float(rng.uniform(0.6, 4.0)) / keys / (1 if bits == 1 else 200) + math.sqrt(2) * 1e-4
    shapes = [(2, n, heads, dim) for n in (queries, keys, keys)]
    if bits == 1:
        query, key, value = (rng.integers(0, 2, shape) * 2 - 1 for shape in shapes)
        key[:, ::3], key[:, 1::3] = query[:, :1], -query[:, :1]  # equal to a query, and opposite to it
        packed = [bits_of(x) for x in (query, key, value)]
        scales = (score_scale, alpha / 2, 0.7)
        out = Native.at(level).binary_attention(*packed, dim, lengths, first, radius, scales, relative)
    else:
        query, key, value = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        steps = (score_scale, alpha, 255 if bits == 8 else 0, 0.7)
        out = Native.at(level).float_attention(query, key, value, lengths, first, radius, steps, relative)

    def quantize(p: np.ndarray) -> np.ndarray:
        return 0.7 * (p if bits == 32 else np.minimum(np.round(p / alpha), 2**bits - 1))

    for b in range(2):
        bias = None if relative is None else relative[b]
        utterance = query[b], key[b], value[b], int(lengths[b])
        expected = slow_attention(*utterance, first, radius, score_scale, quantize, bias)
        if bits == 8:  # a rounding error may move a probability by one step, in few rows
            error = np.abs(out[b] - expected)
            assert error.max() < 1e-2 + 2 * 0.7 * np.abs(value).max()
            rows = (error > 1e-2).any(-1)
            assert rows.sum() <= 1 + 0.05 * rows.size
        else:
            np.testing.assert_allclose(out[b], expected, atol=1e-4)
