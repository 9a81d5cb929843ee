"""Paths as s3prl's datasets see a corpus: no hidden files, suffixes in any case, names taken literally, sorted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upstreams.audio_files import is_hidden


class CorpusPath(type(Path())):  # type: ignore[misc]
    """A path whose `iterdir` and `glob` leave out hidden files and sort what they yield by name."""

    def iterdir(self) -> Iterator[CorpusPath]:
        """Yield the visible entries of the folder."""
        return iter(sorted(entry for entry in super().iterdir() if not is_hidden(entry.name)))

    def glob(self, pattern: str, **options: Any) -> Iterator[CorpusPath]:
        """Yield the paths that match, where a part of the pattern is `*`, `*.suffix` or a name."""
        first, _, rest = str(pattern).partition("/")
        if first.startswith("*"):
            entries = (entry for entry in self.iterdir() if entry.name.lower().endswith(first[1:].lower()))
        else:
            entries = (entry for entry in (self / first,) if entry.exists())
        for entry in entries:
            if not rest:
                yield entry
            elif entry.is_dir():
                yield from entry.glob(rest)
