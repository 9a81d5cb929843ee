"""A note on a table: what a reader must know before comparing its cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One sentence or two; upstreams: the rows that it is about, empty for a note on the whole table."""

    sentence: str
    upstreams: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The note with its rows before it."""
        return f"{listed(self.upstreams)}: {self.sentence}." if self.upstreams else f"{self.sentence}."


def marks(notes: Sequence[Note], upstream: str) -> str:
    """Return the numbers, from 1, of the notes on a row, such as `2, 5`; empty without any."""
    return listed(number for number, note in enumerate(notes, start=1) if upstream in note.upstreams)


def listed(things: Iterable[object]) -> str:
    """Return the values as a comma-separated list."""
    return ", ".join(map(str, things))
