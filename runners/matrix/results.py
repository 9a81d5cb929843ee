"""What every results.json holds, and the commands in it that reproduce the number.

Every figure that this project computes is in percent, and its key says so. `s3prl_metrics` has what s3prl printed, in
s3prl's units: fractions, but the error rates of asr in percent.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from runners.matrix.cell import Fold
from runners.matrix.costs import costs
from runners.matrix.protocol import compare
from runners.tasks import TASKS
from upstreams.machine import device_name, machine
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
        "value_percent": task.in_percent(metrics[task.metric]),
        "higher_is_better": task.higher_is_better,
        "s3prl_metrics": metrics,
        "seed": cell.seed,
        **costs(cell),
        "checkpoint": str(cell.checkpoint) if cell.checkpoint else None,
        "checkpoint_sha256": cell.checkpoint_sha256,
        **compare(fold),
        "device": device_name(cell.device),
        "machine": machine(),
        "versions": versions(),  # with the git commit
        "code": cell.code,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "identity": fold.identity,
    }
