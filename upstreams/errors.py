"""Errors that are written for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SENTENCE = 40  # names that a message may list


class UserError(ValueError):
    """Bad input, told in one sentence that names the thing and what would be right.

    The command line prints the sentence and exits with 2; scripts may catch it as a ValueError.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the closest valid names, or all of them when none is close.

    Where all are too many for a sentence, the one that is least far.

    >>> nearest("kss", ["ks", "sid"])
    "did you mean 'ks'?"
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if len(choices) > SENTENCE:
        return f"the nearest is {difflib.get_close_matches(name, choices, n=1, cutoff=0.0)[0]!r}"
    return "valid are " + ", ".join(choices)
