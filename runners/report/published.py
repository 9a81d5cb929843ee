"""Published SUPERB results, and the leaderboard's score that is measured against two of them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

# The metrics of each task that the score takes; of slot filling both count, half each.
METRICS: dict[str, tuple[str, ...]] = {
    **{task: (task,) for task in ("pr", "asr", "ks", "sid", "er", "ic")},
    "sf": ("sf", "sf_cer"),
}


@functools.cache
def published() -> dict[str, Any]:
    """`source`, `zero` (the row that scores 0) and `rows`, in percent (runners/report/published.yaml)."""
    return yaml.safe_load((resources.files("runners.report") / "published.yaml").read_text(encoding="utf-8"))


def superb_score(figures: Mapping[str, float]) -> float | None:
    """superb_s of the seven tasks: their mean of a line from 0 (FBANK) to 1000 (the best published figure).

    figures: in percent, by task, and `sf_cer`; None when one is missing. The leaderboard's own score takes its ten
    tasks and the best figures of the day (SUPERB challenge at SLT 2022, arXiv 2210.08634).
    """
    rows = published()["rows"]
    zero = next(row for row in rows if row["name"] == published()["zero"])
    parts = []
    for metrics in METRICS.values():
        if any(metric not in figures for metric in metrics):
            return None
        best = {metric: _best(metric, zero[metric]) for metric in metrics}
        parts.append(statistics.fmean(1000 * (figures[m] - zero[m]) / (best[m] - zero[m]) for m in metrics))
    return statistics.fmean(parts)


def _best(metric: str, zero: float) -> float:
    """The published figure that lies farthest from `zero`: no model is as much worse as the best ones are better."""
    return max((row[metric] for row in published()["rows"] if metric in row), key=lambda value: abs(value - zero))
