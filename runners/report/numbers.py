"""Numbers as text. A number that is not zero never reads as zero."""

from __future__ import annotations


def fixed(number: float | None, digits: int = 2, unit: float = 1) -> str:
    """Return the number in this unit, such as `8.63`; `8.5e-4` if the digits would show zero; `-` for None."""
    if number is None:
        return "-"
    value = number / unit
    if value == 0 or abs(value) >= 0.5 * 10**-digits:
        return f"{value:.{digits}f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def short(number: int | None, unit: str = "") -> str:
    """Return `1.7 M`, `23.4 GB` with decimal prefixes; `-` for None."""
    if number is None:
        return "-"
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number} {unit}".strip()
