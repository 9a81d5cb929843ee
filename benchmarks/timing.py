"""Comparison of run times on a shared machine: alternating runs, and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Return the median seconds of each function over `repeats` rounds, after `warm_up` rounds that do not count.

    A round calls each function once, so that a change in the machine's speed affects all of them equally.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
