"""The mean over the five folds of emotion recognition, which is the cell's number (Yang et al., 2021, section 3)."""

from __future__ import annotations

import copy
import statistics
from typing import Any

from runners.matrix import locks
from runners.matrix.cell import Cell, finished
from runners.matrix.stale import RESULTS, set_aside
from upstreams.files import read_json, write_json

# Entries of each fold's results that its mean repeats.
KEPT = (
    *("value_percent", "dev_percent", "learning_rate", "learning_rates", "command", "train_command", "tested"),
    *("best_on_dev", "checkpoint_sha256", "deviations", "versions", "code", "machine", "device"),
)


def write_mean(cell: Cell) -> None:
    """Write the mean over the cell's folds into its results.json; move that file aside if a fold is not done.

    Does nothing for a cell with one fold, or whose checkpoint is not made yet. The file has the entries of a fold's
    results, with `s3prl_metrics` averaged and times added. Two entries are added: `folds`, the value, the commands and
    the origin of each fold, and `fold_deviation_percent`, the sample standard deviation over the folds.
    """
    if len(cell.folds) == 1 or cell.is_open:
        return
    if read_json(cell.results_file) == _of_finished(cell):
        return
    with locks.hold(cell.folder):
        stored, content = read_json(cell.results_file), _of_finished(cell)
        if stored is not None and (content is None or stored.get("identity") != content["identity"]):
            set_aside(cell.folder, RESULTS, stored.get("identity"))
        if content is not None:
            write_json(cell.results_file, content)


def _of_finished(cell: Cell) -> dict[str, Any] | None:
    """Return the results of a cell; None if a fold is not done."""
    done = {fold.key: result for fold in cell.folds if (result := finished(fold))}
    return _mean(done) if len(done) == len(cell.folds) else None


def _mean(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the results of a cell from those of its folds, by the folds' names."""
    of_folds = list(results.values())
    first = of_folds[0]
    values = [result["value_percent"] for result in of_folds]
    devs = [result["dev_percent"] for result in of_folds]
    rates = [result["learning_rate"] for result in of_folds]
    resumed = [result["resumed_at_step"] for result in of_folds if result["resumed_at_step"] is not None]
    identity = copy.deepcopy(first["identity"])
    identity["config"]["downstream_expert"]["datarc"]["test_fold"] = list(results)
    metrics = [result["s3prl_metrics"] for result in of_folds]
    return first | {
        "value_percent": statistics.fmean(values),
        "s3prl_metrics": {key: statistics.fmean(of_fold[key] for of_fold in metrics) for key in metrics[0]},
        "dev_percent": None if None in devs else statistics.fmean(devs),
        "learning_rate": rates[0] if len(set(rates)) == 1 else rates,
        "learning_rates": [],
        "best_on_dev": all(result["best_on_dev"] for result in of_folds),
        "command": " && ".join(result["command"] for result in of_folds),
        "train_command": " && ".join(result["train_command"] for result in of_folds),
        "seconds": {key: round(sum(result["seconds"][key] for result in of_folds), 2) for key in first["seconds"]},
        "resumed_at_step": min(resumed, default=None),
        "expdir": None,  # each fold has its own
        "folds": {
            key: {entry: result[entry] for entry in KEPT} | {"expdir": f"{key}/{result['expdir']}"}
            for key, result in results.items()
        },
        "fold_deviation_percent": statistics.stdev(values),
        "identity": identity,
    }
