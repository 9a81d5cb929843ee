"""Bit widths of a model, written w<weight bits>a<activation bits>: "w1a32", "w1a1", "w32a32" for float."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
        match = re.fullmatch(r"w([0-9]{1,2})a([0-9]{1,2})", str(text))
        if not match or int(match[1]) not in WIDTHS or int(match[2]) not in WIDTHS:
            raise UserError(
                f"bits {text!r} are not valid: write w<bits>a<bits> with 1, 2, 4, 8 or 32 bits, such as w1a32 or w8a8"
            )
        return Bits(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


FLOAT = Bits(32, 32)
QUANTIZED = ("attention", "feed_forward", "convolution")  # the kinds that get the model's bits without an override


def matches(pattern: str, name: str, kind: str) -> bool:
    """True if the pattern of an override is a module's kind or fits its name."""
    return kind == pattern or fnmatchcase(name, pattern)


def bits_of_module(name: str, kind: str, bits: Bits, overrides: Mapping[str, Bits]) -> Bits:
    """Return the bits of a module in a model of `bits`. The last override that matches counts."""
    for pattern, override in reversed(list(overrides.items())):
        if matches(pattern, name, kind):
            return override
    return bits if kind in QUANTIZED else FLOAT


def wants_relu(choice: str, bits: Bits) -> bool:
    """True if a configuration's choice puts a ReLU before a module of these bits."""
    return choice == "relu" or (choice == "auto" and 1 in (bits.weight, bits.activation))
