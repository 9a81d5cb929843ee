"""Notes: what a reader must know before comparing the cells of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runners.report.table import Table


def notes(table: Table) -> list[str]:
    """Return the notes of a table, one sentence or two each."""
    found = [note for task in table.tasks for note in _of_task(table, task)]
    found += [f"cell without a result: {failure}." for failure in table.failures]
    if resumed := [f"{r['upstream']}/{r['task']}" for r in table.results if r["resumed_at_step"] is not None]:
        found.append(
            f"training was resumed after an interruption for {listed(resumed)}. s3prl does not resume bit for bit."
        )
    return found


def _of_task(table: Table, task: str) -> list[str]:
    found = []
    results = table.of_task(task)
    if len({str(sorted(result["identity"]["config"].items())) for result in results}) > 1:
        found.append(f"the {task} cells have different configurations. See config.yaml in each cell's folder.")
    if len({result["identity"]["corpus_sha256"] for result in results}) > 1:
        found.append(f"the {task} cells used different builds of the corpora.")
    if last := [_cell(r) for r in results if not r["best_on_dev"]]:
        found.append(f"{task}, {listed(last)}: the dev score never improved; the last checkpoint was tested.")
    if deviations := [
        f"{r['upstream']} {r['fold_deviation_percent']:.2f} ({len(r['folds'])} folds, seed {r['seed']})"
        for r in results
        if "folds" in r
    ]:
        found.append(f"{task} is the mean over folds. Standard deviations over the folds: {listed(deviations)}.")
    if task == "er" and (single := [r["upstream"] for r in results if "folds" not in r]):
        found.append(f"er, {listed(dict.fromkeys(single))}: one fold only; SUPERB reports the mean of five folds.")
    measured = {u: m for u in table.upstreams if (m := table.measured(u, task))}
    if len({tuple(sorted(m.values)) for m in measured.values()}) > 1:
        counts = listed(f"{upstream} {len(m.values)}" for upstream, m in measured.items())
        found.append(f"the {task} means are over different seeds (number of seeds: {counts}).")
    return found


def _cell(result: dict[str, Any]) -> str:
    return f"{result['upstream']} seed {result['seed']}"


def distinct(things: Iterable[object]) -> str:
    """Return the different values as a sorted, comma-separated list."""
    return listed(sorted({str(thing) for thing in things}))


def listed(things: Iterable[object]) -> str:
    """Return the values as a comma-separated list."""
    return ", ".join(map(str, things))
