"""ER's folds: each is a cell of its own, and the task's result is their mean (Yang et al., 2021, section 3)."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runners.matrix import cell as cells
from runners.matrix import layer_choice
from runners.matrix.cell import Cell
from runners.tasks import FOLD, TASKS, flat_keys, set_key
from upstreams.files import read_json, write_json


def fold(config: dict[str, Any]) -> str:
    """The fold that an ER configuration tests on."""
    return str(dict(flat_keys(config))[FOLD])


def run_cell(cell: Cell) -> None:
    """Run a cell; the last of a task's folds to end writes their mean."""
    if TASKS[cell.task].has_head:
        cells.run_cell(cell)
    else:
        layer_choice.run_cell(cell)
    combine([cell])


def combine(of: Iterable[Cell]) -> None:
    """Write the means of the cells' folds into the folders above theirs; where a fold is not done there is no mean.

    The mean has what a cell's results have, its `metrics` averaged and its times added, and besides `folds`: of each
    fold its value and commands, and `fold_deviation`: the sample standard deviation.
    """
    for mean, siblings in {_mean_file(cell): _siblings(cell) for cell in of if cell.folds}.items():
        with cells.alone_in(mean.parent):
            results = [cells.finished(sibling) for sibling in siblings]
            done = [found for found in results if found]
            if len(done) < len(siblings):
                mean.unlink(missing_ok=True)
                continue
            content = _mean(siblings, done)
            if read_json(mean) != content:
                write_json(mean, content)


def _mean_file(cell: Cell) -> Path:
    return cell.folder.parent / cell.results_file.name


def _siblings(cell: Cell) -> list[Cell]:
    """The cells of all folds of a cell's task, itself among them."""
    siblings = []
    for name in cell.folds:
        config, identity = copy.deepcopy(cell.config), copy.deepcopy(cell.identity)
        for of in (config, identity["config"]):
            set_key(of, FOLD, name)
        siblings.append(dataclasses.replace(cell, config=config, folder=cell.folder.parent / name, identity=identity))
    return siblings


def _mean(siblings: list[Cell], results: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = {key: statistics.fmean(found["metrics"][key] for found in results) for key in results[0]["metrics"]}
    seconds = {key: round(sum(found["seconds"][key] for found in results), 2) for key in results[0]["seconds"]}
    values = [found["value"] for found in results]
    rates = [found["learning_rate"] for found in results]
    resumed = [found["resumed_at_step"] for found in results if found["resumed_at_step"] is not None]
    identity = copy.deepcopy(results[0]["identity"])
    identity["config"]["downstream_expert"]["datarc"]["test_fold"] = list(siblings[0].folds)
    kept = ("value", "dev", "learning_rate", "learning_rates", "command", "train_command", "tested", "best_on_dev")
    return results[0] | {
        "value": statistics.fmean(values),
        "metrics": metrics,
        "dev": None if None in (devs := [found["dev"] for found in results]) else statistics.fmean(devs),
        "learning_rate": rates[0] if len(set(rates)) == 1 else rates,
        "learning_rates": [],
        "best_on_dev": all(found["best_on_dev"] for found in results),
        "command": " && ".join(found["command"] for found in results),
        "train_command": " && ".join(found["train_command"] for found in results),
        "seconds": seconds,
        "resumed_at_step": min(resumed, default=None),
        "folds": {
            fold(sibling.config): {key: found[key] for key in kept}
            for sibling, found in zip(siblings, results, strict=True)
        },
        "fold_deviation": statistics.stdev(values),
        "identity": identity,
    }
