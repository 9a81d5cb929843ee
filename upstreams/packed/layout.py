"""Arrays in the memory layout of the native kernel. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16  # outputs in a block of weights

Array = NDArray[Any]
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]


def words_of(columns: int) -> int:
    """Return the number of 32-bit words that hold `columns` bits."""
    return -(-columns // 32)


def to_blocks(codes: Bytes) -> Words:
    """Return 1-bit weights in blocks of outputs: codes (outputs, bytes), the lowest bit first -> (blocks, words, 16).

    Zeros fill the last word of a row and the last block.
    """
    outputs, columns = codes.shape
    blocks = -(-outputs // LANES)
    padded = np.zeros((blocks * LANES, words_of(columns * 8) * 4), np.uint8)
    padded[:outputs, :columns] = codes
    return np.ascontiguousarray(padded.view("<u4").reshape(blocks, LANES, -1).transpose(0, 2, 1), np.uint32)


def to_float_blocks(weight: Floats) -> Floats:
    """Return float weights in blocks of outputs: (outputs, inputs) -> (blocks, inputs, 16)."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, inputs), np.float32)
    padded[:outputs] = weight
    return np.ascontiguousarray(padded.reshape(-1, LANES, inputs).transpose(0, 2, 1))


def pad_to_block(values: Array) -> Array:
    """Return (outputs,) values with zeros up to a whole block."""
    return np.concatenate([values, np.zeros(-len(values) % LANES, values.dtype)])
