"""Read one cell's results.json: the keys that it must have, its value in percent, and the files behind its test."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from runners.tasks import TASKS

REQUIRED_KEYS = (
    *("upstream", "task", "seed", "metric", "value", "command", "train_command", "corpus", "versions", "machine"),
    *("parameters", "macs", "storage_bytes", "seconds", "identity", "best_on_dev", "resumed_at_step", "device"),
)

# Factor that turns a metric's value into percent. s3prl already gives ASR's error rates in percent.
_PERCENT = {("asr", "wer"): 1.0, ("asr", "uer"): 1.0}


def fault(result: dict[str, Any]) -> str | None:
    """Return why the result cannot be in a table; None if it can."""
    missing = [key for key in REQUIRED_KEYS if key not in result]
    if missing:
        return f"results.json has no key {missing[0]!r}"
    if result["task"] not in TASKS:
        return f"results.json names an unknown task, {result['task']!r}"
    value = result["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{result['metric']} is {value!r}, not a finite number"
    return None


def percent(result: dict[str, Any]) -> float:
    """Return the result's value in percent."""
    return float(result["value"]) * _PERCENT.get((result["task"], result["metric"]), 100.0)


def is_published(result: dict[str, Any]) -> bool:
    """True if the cell used the published corpus, not an embedded one."""
    return result["corpus"]["label"] == "as published"


def total_seconds(result: dict[str, Any]) -> float:
    """Return the seconds that training and testing took together."""
    return sum(result["seconds"].values())


def tested_path(result: dict[str, Any]) -> Path:
    """Return the path in the test command: the head's checkpoint, or the folder of a task without a head."""
    words = shlex.split(result["command"])
    return Path(words[words.index("-e" if "-e" in words else "-p") + 1])
