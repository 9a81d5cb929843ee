"""Read one cell's results.json: the keys that it must have, what it departs from, and the files behind its test."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runners.tasks import FOLDS, TASKS

REQUIRED_KEYS = (
    *("upstream", "task", "seed", "metric", "value_percent", "s3prl_metrics", "command", "train_command", "corpus"),
    *("deviations", "parameters", "macs", "storage_bytes", "seconds", "identity", "best_on_dev", "resumed_at_step"),
    *("tested", "expdir", "checkpoint_sha256", "versions", "machine", "device"),
)


def fault(result: dict[str, Any]) -> str | None:
    """Return why the result cannot be in a table; None if it can."""
    missing = [key for key in REQUIRED_KEYS if key not in result]
    if missing:
        return f"results.json has no key {missing[0]!r}"
    if result["task"] not in TASKS:
        return f"results.json names an unknown task, {result['task']!r}"
    value = result["value_percent"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{result['metric']} is {value!r}, not a finite number"
    return None


def deviations(result: Mapping[str, Any]) -> list[str]:
    """Return what makes the result incomparable with published ones; empty: comparable.

    The batch runner compares corpus and configuration of each cell. Emotion recognition is the mean of five folds.
    """
    missing = len(set(FOLDS) - set(result.get("folds", {}))) if result["task"] == "er" else 0
    return [*result["deviations"], *([f"{len(FOLDS) - missing or 1} of {len(FOLDS)} folds"] if missing else [])]


def total_seconds(result: Mapping[str, Any]) -> float:
    """Return the seconds that training and testing took together."""
    return sum(result["seconds"].values())


def tested_parts(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what was tested, by fold; of a cell without folds the result itself, under the key ""."""
    return result.get("folds") or {"": result}


def expdir(result: Mapping[str, Any], part: Mapping[str, Any]) -> Path:
    """Return s3prl's folder of one of the `tested_parts`, wherever the run folder lies now."""
    return Path(result["folder"], part["expdir"])


def here(command: str, folder: Path) -> str:
    """Return a command of the cell in `folder` with the run folder's paths as they are now, not as they were.

    The recorded paths are absolute. They stay if the recorded folder still exists.
    """
    cell = "/" + "/".join(folder.absolute().parts[-4:])  # /cells/<label>/<task>/seed<k>
    return " && ".join(shlex.join(_moved(shlex.split(part), cell, folder)) for part in command.split(" && "))


def _moved(words: list[str], cell: str, folder: Path) -> list[str]:
    roots = {word[: word.index(cell)] for word in words if cell in word}
    old, new = min(roots, default=""), str(folder.absolute().parents[3])
    if not old or Path(old + cell).exists():
        return words
    return [new + word.removeprefix(old) if word == old or word.startswith(f"{old}/") else word for word in words]
