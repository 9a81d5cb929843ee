"""The legend of a table: units, seeds, corpora, and what each column is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from runners.report.note import listed
from runners.report.published import scale
from runners.report.table import Table

COSTS = (
    "Parameters, MACs and storage are computed, not measured. Storage is the size of the upstream's weights at their"
    " bit widths, in decimal units (1 MB is 10^6 bytes). MACs are the total over the 32 utterances of the SUPERB"
    " leaderboard."
)
SCORE = (
    "Score is the mean over the tasks; an error rate counts as 100 minus the rate, at least 0. It ranks the rows of"
    " this table and is not the leaderboard's score."
)


def legend(table: Table) -> list[str]:
    """Return the paragraphs below a table."""
    lines = [
        f"All figures are in percent. ↑: higher is better. ↓: lower is better. {seeds(table)}",
        "Speech: " + "; ".join(f"{kind} in {listed(tasks)}" for kind, tasks in _speech(table).items()) + ".",
    ]
    for task, label in sorted({(result["task"], result["corpus"]["label"]) for result in table.results}):
        if label.startswith("synthetic"):
            lines.append(f"The {task.upper()} labels are {label}. They say nothing about the real task.")
    return [*lines, f"{COSTS} {SCORE}", *([scale()] if has_superb_score(table) else [])]


def seeds(table: Table) -> str:
    """Return a sentence on the seeds and the spread."""
    found = table.seeds()
    spread = "mean ± standard deviation over the seeds" if len(found) > 1 else "one seed, so no spread is known"
    return f"Seeds: {listed(found)} ({spread})."


def has_superb_score(table: Table) -> bool:
    """True if a row has a superb_s."""
    return any(table.superb_score(upstream) is not None for upstream in table.upstreams)


def distinct(things: Iterable[object]) -> str:
    """Return the different values as a sorted, comma-separated list."""
    return listed(sorted({str(thing) for thing in things}))


def _speech(table: Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for task in table.tasks:
        found[distinct(result["corpus"]["speech"] for result in table.of_task(task))].append(task.upper())
    return found
