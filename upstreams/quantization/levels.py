"""The levels of a quantizer, for torch tensors and numpy arrays alike. Imports neither torch nor numpy.

`xp` is the module of the array, `torch` or `numpy`; everything else is operators and methods that both have.
"""

from __future__ import annotations

from typing import Any

NAN = (
    "a packed model met NaN, which has no place among the levels of a quantizer: "
    "the waveform must lie in [-1, 1], and the model's scales must not overflow"
)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest whole number: -2^(b-1) and 2^(b-1) - 1 if signed, else 0 and 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def whole_numbers(x: Any, bits: int, signed: bool, alpha: Any, xp: Any) -> Any:
    """Return the whole numbers of which the quantized x is `alpha` times, in the shape and type of x.

    x / alpha is rounded, halves to even, and clipped to the range of `bits`. One signed bit has the levels -1 and +1;
    0 becomes +1.
    """
    if bits == 1 and signed:
        one = xp.ones_like(x)
        return xp.where(x >= 0, one, -one)
    return (x / alpha).round().clip(*integer_range(bits, signed))
