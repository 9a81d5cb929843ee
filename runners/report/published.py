"""Published SUPERB results, and superb_s, the challenge's score, which they calibrate."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

# The metrics of each task that superb_s uses; slot filling counts half by each of its two metrics.
METRICS: dict[str, tuple[str, ...]] = {
    **{task: (task,) for task in ("pr", "asr", "ks", "sid", "er", "ic")},
    "sf": ("sf", "sf_cer"),
}


@functools.cache
def published() -> dict[str, Any]:
    """Return published.yaml: `source`, `zero` (the name of the row that scores 0) and `rows`, in percent."""
    return yaml.safe_load((resources.files("runners.report") / "published.yaml").read_text(encoding="utf-8"))


def superb_score(figures: Mapping[str, float]) -> float | None:
    """Return superb_s of the seven tasks: their mean on a linear scale from 0 (FBANK) to 1000 (best published figure).

    figures: in percent, by task, and `sf_cer`; None if one is missing. The leaderboard's own score covers ten tasks and
    uses the best figures at the time (SUPERB challenge at SLT 2022, arXiv 2210.08634).
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
    """Return the published figure that differs most from `zero`. No model is worse by as much as the best is better."""
    return max((row[metric] for row in published()["rows"] if metric in row), key=lambda value: abs(value - zero))
