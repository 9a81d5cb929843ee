"""Bit widths of a model, written w<weight bits>a<activation bits>: "w1a32", "w1a1", "w32a32" for float."""

from __future__ import annotations

import re
from dataclasses import dataclass

from upstreams.errors import UserError

WIDTHS = (1, 2, 4, 8, 32)


@dataclass(frozen=True)
class Bits:
    """Bit widths of weights and activations; 32 is float."""

    weight: int
    activation: int

    @staticmethod
    def parse(text: str) -> Bits:
        """Return the bits of a text such as "w1a32". Raises UserError unless it is w{1,2,4,8,32}a{1,2,4,8,32}."""
        match = re.fullmatch(r"w(\d+)a(\d+)", str(text))
        if not match or int(match[1]) not in WIDTHS or int(match[2]) not in WIDTHS:
            raise UserError(
                f"bits {text!r} are not valid: write w<bits>a<bits> with 1, 2, 4, 8 or 32 bits, such as w1a32 or w8a8"
            )
        return Bits(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


FLOAT = Bits(32, 32)
