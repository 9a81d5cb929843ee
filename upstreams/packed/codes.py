"""Weights as the bytes of a packed file, for torch tensors and numpy arrays alike. Imports neither torch nor numpy.

`xp` is the module of the array, `torch` or `numpy`.
"""

from __future__ import annotations

from typing import Any


def unpack_codes(codes: Any, columns: int, bits: int, xp: Any) -> Any:
    """Return the weights (outputs, columns) int8 that packed codes (outputs, bytes) uint8 stand for.

    A byte holds 8 / bits weights, the first in its lowest bits. A code c stands for c - 2^(bits - 1); with one bit,
    0 stands for -1 and 1 for +1.
    """
    fields = xp.stack([(codes >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
    fields = fields.reshape(codes.shape[0], -1)[:, :columns]
    # uint8 wraps around, and its bits are then those of the int8.
    whole = fields * 2 - 1 if bits == 1 else fields - 2 ** (bits - 1)
    return whole.view(xp.int8)


def code_bytes(columns: int, bits: int) -> int:
    """Return the number of bytes of a row of `columns` weights."""
    return -(-columns * bits // 8)
