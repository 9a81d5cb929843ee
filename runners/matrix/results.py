"""What every results.json holds, and the commands in it that reproduce the number."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from runners.matrix.cell import Cell, Fold
from runners.tasks import TASKS
from upstreams.files import read_json
from upstreams.versions import versions


def command(arguments: Sequence[str]) -> str:
    """Return the shell command that runs `superbit downstream` with these arguments."""
    return shlex.join(["superbit", "downstream", *arguments])


def describe(fold: Fold, metrics: dict[str, float]) -> dict[str, Any]:
    """Return the entries that all results share: the number, what it is of, and what it was measured with."""
    cell = fold.cell
    task = TASKS[cell.task]
    return {
        "upstream": cell.label,
        "name": cell.upstream,
        "task": cell.task,
        "metric": task.metric,
        "value": metrics[task.metric],
        "higher_is_better": task.higher_is_better,
        "metrics": metrics,
        "seed": cell.seed,
        **_costs(cell),
        "checkpoint": str(cell.checkpoint) if cell.checkpoint else None,
        "corpus": _corpus(cell),
        "device": cell.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),  # with the git commit
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "identity": fold.identity,
    }


def _costs(cell: Cell) -> dict[str, int | None]:
    """Return parameters, MACs and storage; None for upstreams other than this project's and s3prl's baselines."""
    from upstreams import registry

    if cell.upstream in (*registry.names(), "fbank", "fbank_no_cmvn"):
        costs = registry.describe(cell.upstream, cell.checkpoint)
        return {key: costs[key] for key in ("parameters", "macs", "storage_bytes")}
    return dict.fromkeys(("parameters", "macs", "storage_bytes"))


def _corpus(cell: Cell) -> dict[str, str]:
    """Return `speech` and `label` as corpus.json describes the task. Corpora without that file are the real ones."""
    tasks = (read_json(cell.corpora / "corpus.json") or {}).get("tasks", {})
    described = tasks.get(cell.task, {"speech": "real", "label": "as published"})
    return {key: described[key] for key in ("speech", "label")}
