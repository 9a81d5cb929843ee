"""Notes: what a reader must know before comparing the cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runners.matrix.protocol import EMBEDDED
from runners.report.mixtures import mixtures
from runners.report.note import Note, listed
from runners.report.results import deviations
from runners.report.table import Table
from runners.tasks import FOLD, TASKS, flat_keys, path_keys

SHOWN = 4  # settings or deviations that a note names


def notes(table: Table) -> list[Note]:
    """Return the notes of a table."""
    found = mixtures(table)
    found += [note for task in table.tasks for note in _of_task(table, task)]
    found += _incomparable(table)
    if resumed := [r for r in table.results if r["resumed_at_step"] is not None]:
        cells = listed(dict.fromkeys(f"{r['upstream']}/{r['task']}" for r in resumed))
        sentence = "s3prl does not resume bit for bit, and the seconds of training count from there"
        found.append(Note(f"training was resumed after an interruption for {cells}. {sentence}", _rows(resumed)))
    found += [Note(f"cell without a result: {failure}") for failure in table.failures]
    return [_of_all(note) if set(note.upstreams) == set(table.upstreams) else note for note in found]


def _of_all(note: Note) -> Note:
    return Note(f"all rows: {note.sentence}")


def _of_task(table: Table, task: str) -> list[Note]:
    found = []
    results = [result for result in table.ordered() if result["task"] == task]
    if different := _different_settings(task, results):
        found.append(Note(f"the {task} cells have different configurations: {different}"))
    if len({str({key: r["identity"][key] for key in r["identity"] if key.startswith("corpus")}) for r in results}) > 1:
        found.append(Note(f"the {task} cells used different builds of the corpora"))
    if last := [result for result in results if not result["best_on_dev"]]:
        cells = listed(f"{r['upstream']} seed {r['seed']}" for r in last)
        sentence = "the dev score never improved; the last checkpoint was tested"
        found.append(Note(f"{task}, {cells}: {sentence}", _rows(last)))
    by_fold = [
        f"{r['upstream']} {r['fold_deviation_percent']:.2f} ({len(r['folds'])} folds, seed {r['seed']})"
        for r in results
        if "folds" in r
    ]
    if by_fold:
        found.append(Note(f"{task} is the mean over folds. Standard deviations over the folds: {listed(by_fold)}"))
    if task == "er" and (single := _rows([r for r in results if "folds" not in r])):
        found.append(Note("er: one fold only; SUPERB reports the mean of five folds", single))
    measured = {u: m for u in table.upstreams if (m := table.measured(u, task))}
    if len({tuple(sorted(m.values)) for m in measured.values()}) > 1:
        counts = listed(f"{upstream} {len(m.values)}" for upstream, m in measured.items())
        found.append(Note(f"the {task} means are over different seeds (number of seeds: {counts})"))
    return found


def _incomparable(table: Table) -> list[Note]:
    """Return what sets the cells apart from published results; one note for tasks and rows that deviate alike."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in table.ordered():
        if found := deviations(result):
            # The settings hardly matter if the corpus is another one.
            shown = 1 if found[0].startswith(EMBEDDED) else SHOWN
            rest = f", and {len(found) - shown} more in results.json" if len(found) > shown else ""
            groups.setdefault(f"{listed(found[:shown])}{rest}", []).append(result)
    notes = []
    for what, deviating in groups.items():
        tasks = [task for task in table.tasks if any(result["task"] == task for result in deviating)]
        sentence = f"{listed(tasks)} cannot be compared with published results: {what}"
        every_row = len(deviating) == len([result for result in table.results if result["task"] in tasks])
        notes.append(Note(sentence, () if every_row else _rows(deviating)))
    return notes


def _different_settings(task: str, results: list[dict[str, Any]]) -> str:
    """Return the settings in which the cells differ, with each value's rows; paths and folds do not count."""
    leave_out = {*path_keys(TASKS[task]), FOLD}
    flat = [(r, {k: v for k, v in flat_keys(r["identity"]["config"]) if k not in leave_out}) for r in results]
    found = []
    for key in dict.fromkeys(key for _, settings in flat for key in settings):
        rows: dict[str, list[dict[str, Any]]] = {}
        for result, settings in flat:
            value = settings.get(key)
            if not isinstance(value, Mapping):  # a section, whose settings follow
                rows.setdefault(str(value), []).append(result)
        if len(rows) > 1:
            found.append(f"{key} " + "; ".join(f"{value} ({listed(_rows(of))})" for value, of in rows.items()))
    more = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {more} more settings" if more > 0 else "")


def _rows(results: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["upstream"] for result in results))
