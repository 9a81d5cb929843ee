"""Published SUPERB results, and superb_s, the challenge's score, which they calibrate."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from runners.report.numbers import fixed

# The metrics of each task that superb_s uses; slot filling counts half by each of its two metrics.
METRICS: dict[str, tuple[str, ...]] = {
    **{task: (task,) for task in ("pr", "asr", "ks", "sid", "er", "ic")},
    "sf": ("sf", "sf_cer"),
}
SUPERB_S = "superb_s, 7 tasks"  # title of its column


@functools.cache
def published() -> dict[str, Any]:
    """Return published.yaml: `sources`, `zero` (the name of the row that scores 0) and `rows`, in percent."""
    return yaml.safe_load((resources.files("runners.report") / "published.yaml").read_text(encoding="utf-8"))


@functools.cache
def references() -> dict[str, tuple[float, float, str]]:
    """Return for each metric the figure that scores 0, the figure that scores 1000, and the row of the latter.

    The latter is the figure that differs most from the former: no model is worse by as much as the best is better.
    """
    rows = published()["rows"]
    zero = next(row for row in rows if row["name"] == published()["zero"])
    found = {}
    for metric in (metric for metrics in METRICS.values() for metric in metrics):
        best = max((row for row in rows if metric in row), key=lambda row: abs(row[metric] - zero[metric]))
        found[metric] = (zero[metric], best[metric], best["name"])
    return found


def superb_score(figures: Mapping[str, float]) -> float | None:
    """Return superb_s of the seven tasks: their mean on a linear scale from 0 (FBANK) to 1000 (best published figure).

    figures: in percent, by task, and `sf_cer`; None if one is missing. The formula is that of the SUPERB challenge at
    SLT 2022 (arXiv 2210.08634). The leaderboard's own score covers ten tasks and has its own reference figures.
    """
    if any(metric not in figures for metric in references()):
        return None
    parts = [statistics.fmean(_scaled(m, figures[m]) for m in metrics) for metrics in METRICS.values()]
    return statistics.fmean(parts)


def _scaled(metric: str, figure: float) -> float:
    zero, best, _ = references()[metric]
    return 1000 * (figure - zero) / (best - zero)


def scale() -> str:
    """Return a sentence on what scores 0 and 1000 in superb_s."""
    best = ", ".join(
        f"{metric.upper().replace('_', ' ')} {fixed(figure)} ({name})"
        for metric, (_, figure, name) in references().items()
    )
    return (
        f"superb_s is the mean over the seven tasks on a linear scale: 0 is {published()['zero']}, 1000 is the best"
        f" figure among the published results listed here: {best}. Slot filling counts half by F1 and half by CER."
        " It is not the leaderboard's score, which covers ten tasks and has its own reference figures. It needs results"
        " of all seven tasks that deviate in nothing from the published corpora and the official settings."
    )
