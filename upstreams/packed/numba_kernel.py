"""The 1-bit product in numba, for machines with numba and without a compiled kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from upstreams.packed.layout import Bytes, Integers


@intrinsic
def _ones(typing_context: Any, x: Any) -> Any:
    """Return the number of set bits of a 64-bit word, by the processor's instruction if it has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit
def _differing(left: NDArray[np.uint64], right: NDArray[np.uint64], out: Integers) -> None:
    for j in range(right.shape[0]):
        for i in range(left.shape[0]):
            total = np.uint64(0)
            for k in range(left.shape[1]):
                total += _ones(left[i, k] ^ right[j, k])  # type: ignore[call-arg]
            out[i, j] = np.int32(total)


def product(whole: NDArray[Any], codes: Bytes, signed: bool) -> Integers:
    """Return the product of whole numbers (rows, inputs) and weights (outputs, inputs), (rows, outputs).

    whole: +1 and -1 if `signed`, else 0 and 1. codes: (outputs, bytes), the packed weights of +1 and -1.
    """
    inputs = whole.shape[1]
    left, right = _words(np.packbits(whole > 0, axis=1, bitorder="little")), _words(codes)
    out = np.empty((len(left), len(right)), np.int32)
    _differing(left, right, out)
    if signed:
        return inputs - 2 * out
    sums = 2 * np.unpackbits(codes, axis=1, count=inputs, bitorder="little").sum(1, dtype=np.int32) - inputs
    return (inputs + sums - 2 * out) // 2


def _words(bits: Bytes) -> NDArray[np.uint64]:
    padded = np.zeros((bits.shape[0], -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)
