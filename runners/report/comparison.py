"""Comparisons of the table's rows with the baseline and with the untrained copies, paired by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runners.report.table import BASELINE, Measured, Table

NOTE = (
    "Gain in percentage points, paired by seed. Positive is better, also for error rates. With several seeds:"
    " mean ± standard deviation over the seeds."
)


@dataclass(frozen=True)
class Comparison:
    """Gains of upstreams over a reference: for each upstream its gain on each task, None without a shared seed."""

    title: str
    gains: dict[str, list[Measured | None]]

    def wins(self, upstream: str) -> str:
        """Return on how many tasks the mean gain is positive, such as `3 of 7`."""
        known = [gain.mean for gain in self.gains[upstream] if gain]
        return f"{sum(gain > 0 for gain in known)} of {len(known)}"


def comparisons(table: Table) -> list[Comparison]:
    """Return the comparisons with the baseline and with the untrained copies, without those that lack a reference."""
    found = [
        _comparison(table, f"Against {BASELINE}", lambda upstream: BASELINE),
        _comparison(table, "Against the untrained copy", table.untrained),
    ]
    return [comparison for comparison in found if comparison.gains]


def columns(table: Table) -> list[str]:
    """Return the titles of a comparison's columns."""
    # Without the arrow: here higher is always better.
    return ["upstream", *(table.title(task)[:-2] for task in table.tasks), "tasks better"]


def _comparison(table: Table, title: str, reference_of: Callable[[str], str | None]) -> Comparison:
    gains = {}
    for upstream in table.upstreams:
        reference = reference_of(upstream)
        if reference is not None and reference != upstream and reference in table.upstreams:
            gains[upstream] = [table.gain(upstream, reference, task) for task in table.tasks]
    return Comparison(title, gains)
