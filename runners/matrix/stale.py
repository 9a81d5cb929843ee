"""Results and trainings of another identity: they move aside, into `stale-<digest of their identity>/` beside them.

Nothing that was computed is deleted. If their identity is wanted again, they move back, and nothing is computed anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.matrix import locks
from runners.matrix.cell import Cell, Fold, Training, finished
from runners.matrix.identity import ORIGIN, reason, same_experiment, short
from upstreams.files import read_json

PREFIX = "stale-"
RESULTS = re.compile(r"results\.json")
# What a training leaves, in the order in which it moves aside: the file with the identity (cell.json) last. The log of
# the folder stays, as a running training may write to it.
TRAINING = re.compile(r"expdir|(dev|test)\d+(\.json)?|config\.yaml|trained\.json|cell\.json")


@dataclass(frozen=True)
class Stale:
    """Results of a fold that are of another identity than the one that is wanted now."""

    fold: Fold
    results: dict[str, Any]

    def __str__(self) -> str:
        percent, metric = self.results.get("value_percent"), self.results.get("metric", "")
        number = (
            f"{metric} {percent:.2f} %" if isinstance(percent, float | int) else f"{metric} {self.results.get('value')}"
        )
        return f"{self.fold.name}: stale, was {number}, because {reason(self.results['identity'], self.fold.identity)}"


def settle(cells: Iterable[Cell]) -> None:
    """Move stale results aside, so that no report shows them, and move results and trainings back that are wanted.

    Leaves cells alone whose checkpoint is not made yet.
    """
    for cell in (cell for cell in cells if not cell.is_open):
        for fold in cell.folds:
            if finished(fold) is None and not locks.is_held(fold.folder):
                settle_results(fold)
            for training in fold.trainings if finished(fold) is None else ():
                if not locks.is_held(training.folder):
                    settle_training(training, training.identity, only_back=True)


def settle_results(fold: Fold) -> None:
    """Move the fold's stale results aside, and those of this experiment back with their trainings."""
    if (stored := read_json(fold.results_file)) is not None:
        set_aside(fold.folder, RESULTS, stored.get("identity"))
    if (kept := kept_aside(fold)) is not None:
        computed_by = {key: kept["identity"][key] for key in ORIGIN}
        for training in fold.trainings:
            settle_training(training, training.identity | computed_by, only_back=True)
        _bring_back(fold.folder, kept["identity"])


def settle_training(training: Training, wanted: Mapping[str, Any], *, only_back: bool = False) -> None:
    """Move what a training of another identity than `wanted` left in the folder aside, and what is wanted back.

    only_back: leave the folder alone if there is nothing to move back.
    """
    folder = training.folder
    if only_back and not (folder / f"{PREFIX}{short(wanted)}").is_dir():
        return
    there = read_json(training.started_file) or (read_json(training.trained_file) or {}).get("identity")
    if there != wanted:
        set_aside(folder, TRAINING, there)
    _bring_back(folder, wanted)


def set_aside(folder: Path, names: re.Pattern[str], identity: Any) -> None:
    """Move the entries of a folder that have one of the names into the folder of their identity."""
    entries = _entries(folder, names)
    if not entries:
        return
    target = folder / f"{PREFIX}{short(identity)}"
    while any((target / entry.name).exists() for entry in entries):
        target = target.with_name(f"{target.name}+")
    target.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # another runner was faster
            entry.rename(target / entry.name)


def _bring_back(folder: Path, identity: Any) -> None:
    source = folder / f"{PREFIX}{short(identity)}"
    for entry in reversed(_entries(source, re.compile(".*"))):
        if not (folder / entry.name).exists():
            with contextlib.suppress(FileNotFoundError):
                entry.rename(folder / entry.name)
    with contextlib.suppress(OSError):  # there is none, or it is not empty
        source.rmdir()


def _entries(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Return the entries of a folder that have one of the names; those that mark a training as whole come last."""
    if not folder.is_dir():
        return []
    last = ("trained.json", "cell.json")
    found = [path for path in folder.iterdir() if names.fullmatch(path.name)]
    return sorted(found, key=lambda path: (last.index(path.name) + 1 if path.name in last else 0, path.name))


def kept_aside(fold: Fold) -> dict[str, Any] | None:
    """Return the results that moved aside and are wanted again; None if there are none.

    Those of the present code and versions come first; of several folds only those count.
    """
    exact = [results for results in _aside(fold) if results["identity"] == fold.identity]
    if exact or len(fold.cell.folds) > 1 or fold.cell.rerun_stale:
        return next(iter(exact), None)
    return next((results for results in _aside(fold) if same_experiment(results["identity"], fold.identity)), None)


def _aside(fold: Fold) -> Iterator[dict[str, Any]]:
    """Yield the fold's results that moved aside, the newest first."""
    files = list(fold.folder.glob(f"{PREFIX}*/results.json"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        results = read_json(file)
        if results is not None and isinstance(results.get("identity"), dict):
            yield results


def stale_results(cells: Iterable[Cell]) -> tuple[list[Stale], list[Stale]]:
    """Return the folds with stale results: those that run again, and those that stay in the report."""
    again: list[Stale] = []
    staying: list[Stale] = []
    for fold in [fold for cell in cells if not cell.is_open for fold in cell.folds]:
        results = finished(fold) or kept_aside(fold)
        found = again if results is None else staying
        if results is None:
            stored = read_json(fold.results_file)
            results = stored if stored and isinstance(stored.get("identity"), dict) else next(_aside(fold), None)
        if results is not None and results["identity"] != fold.identity:
            found.append(Stale(fold, results))
    return again, staying
