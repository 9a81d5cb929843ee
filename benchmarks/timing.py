"""Timing things against one another on a machine that others use too: in turn, and by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each function over `repeats` rounds in which each is called once, after `warm_up` rounds.

    Run in turn, so that a change of the machine's speed meets all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number >= warm_up:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
