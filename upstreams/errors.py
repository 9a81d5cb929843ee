"""Errors that tell a user what to correct."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

MOST_LISTED = 40  # names that a message lists
LONGEST_NAME = 200  # characters of an unknown name that are compared with the valid ones

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


class UserError(ValueError):
    """Invalid input. The message is one sentence: it names the faulty thing and says what would be valid.

    The command line prints the message and exits with code 2. Scripts can catch it as a ValueError.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: up to three close names, or all valid names if none is close.

    If there are more than MOST_LISTED valid names, return the closest one only.

    >>> nearest("kss", ["ks", "sid"])
    "did you mean 'ks'?"
    """
    name, choices = name[:LONGEST_NAME], sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if len(choices) > MOST_LISTED:
        return f"the closest is {difflib.get_close_matches(name, choices, n=1, cutoff=0.0)[0]!r}"
    return "valid values: " + ", ".join(choices)


def shown(value: Any) -> str:
    """Return repr(value) for a message, shortened: a value from a file can be of any size and depth."""
    try:
        return _short.repr(value)
    except ValueError:  # Python refuses to write whole numbers of more than 4300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
