"""The table of results: one row for each upstream, one column for each task, collected from the cells' results.json.

Every renderer of this folder imports this data; it imports none of them.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.matrix.record import read_record
from runners.report import published
from runners.report.numbers import fixed
from runners.report.results import deviations, fault, here
from runners.tasks import TASKS
from upstreams.errors import UserError
from upstreams.files import read_json

BASELINE = "fbank_no_cmvn"
UNTRAINED = "_untrained"  # suffix of an upstream with its initial weights
BITS = re.compile(r"_(w\d+a\d+)$")  # suffix of a quantized upstream


@dataclass(frozen=True)
class Measured:
    """One task of one upstream: the value for each seed, in percent."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds; None with a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def text(self, signed: bool = False, digits: int = 2) -> str:
        """Return `71.50 ± 0.71`, or `71.50` with a single seed; signed: `+1.50 ± 0.71`."""
        mean = f"{'+' if signed and self.mean >= 0 else ''}{fixed(self.mean, digits)}"
        return mean if self.deviation is None else f"{mean} ± {fixed(self.deviation, digits)}"


@dataclass(frozen=True)
class Table:
    """All results of the given run folders; rows in the order of the matrix, columns in SUPERB's order."""

    results: list[dict[str, Any]]
    upstreams: list[str]
    tasks: list[str]
    failures: list[str] = field(default_factory=list)  # cells without a result, with the reason

    def of_task(self, task: str) -> list[dict[str, Any]]:
        """Return the results of one task."""
        return [result for result in self.results if result["task"] == task]

    def of_upstream(self, upstream: str) -> list[dict[str, Any]]:
        """Return the results of one upstream."""
        return [result for result in self.results if result["upstream"] == upstream]

    def seeds(self) -> list[int]:
        """Return all seeds, sorted."""
        return sorted({result["seed"] for result in self.results})

    def measured(self, upstream: str, task: str) -> Measured | None:
        """Return the values of one task of one upstream; None if there is no result."""
        values = {
            result["seed"]: float(result["value_percent"])
            for result in self.of_upstream(upstream)
            if result["task"] == task
        }
        return Measured(values) if values else None

    def ordered(self) -> list[dict[str, Any]]:
        """Return the results row by row, column by column, seed by seed."""

        def place(result: dict[str, Any]) -> tuple[int, int, int]:
            return self.upstreams.index(result["upstream"]), self.tasks.index(result["task"]), result["seed"]

        return sorted(self.results, key=place)

    def cost(self, upstream: str, key: str) -> int | None:
        """Return `parameters`, `macs` or `storage_bytes` of an upstream; None if unknown."""
        known = (result[key] for result in self.of_upstream(upstream))
        return next((int(value) for value in known if value is not None), None)

    def is_best(self, upstream: str, task: str) -> bool:
        """True if no upstream has a better mean; equal means are all best."""
        means = {u: m.mean for u in self.upstreams if (m := self.measured(u, task))}
        choose = max if TASKS[task].higher_is_better else min
        return upstream in means and means[upstream] == choose(means.values())

    def score(self, upstream: str) -> Measured | None:
        """Return the mean over the table's tasks as a quality from 0 to 100, of each seed that has all tasks.

        An accuracy or F1 counts as its percentage, an error rate as 100 minus its percentage, at least 0. The score
        ranks the upstreams of one table. It is not the SUPERB leaderboard's score. None if no seed has all tasks.
        """
        values = {task: m.values if (m := self.measured(upstream, task)) else {} for task in self.tasks}
        seeds = set.intersection(*(set(of_seed) for of_seed in values.values())) if values else set()
        scores = {
            seed: statistics.fmean(
                of_seed[seed] if TASKS[task].higher_is_better else max(0.0, 100 - of_seed[seed])
                for task, of_seed in values.items()
            )
            for seed in sorted(seeds)
        }
        return Measured(scores) if scores else None

    def superb_score(self, upstream: str) -> float | None:
        """Return superb_s of the seven tasks; None unless all seven have results without any deviation."""
        results = self.of_upstream(upstream)
        if any(map(deviations, results)):
            return None
        figures = {task: m.mean for task in self.tasks if (m := self.measured(upstream, task))}
        rates = [100 * r["s3prl_metrics"]["slot_value_cer"] for r in results if "slot_value_cer" in r["s3prl_metrics"]]
        if "sf" in figures and rates:
            figures["sf_cer"] = statistics.fmean(rates)
        return published.superb_score(figures)

    def is_comparable(self) -> bool:
        """True if all cells used the published corpora with the official settings."""
        return not any(map(deviations, self.results))

    def title(self, task: str) -> str:
        """Return the column's title, such as `KS acc ↑`, with "(synthetic)" if the corpus's labels are synthetic."""
        is_synthetic = any(result["corpus"]["label"].startswith("synthetic") for result in self.of_task(task))
        arrow = "↑" if TASKS[task].higher_is_better else "↓"
        return f"{task.upper()}{' (synthetic)' if is_synthetic else ''} {TASKS[task].metric} {arrow}"

    def untrained(self, upstream: str) -> str | None:
        """Return the row of the same model with initial weights: `x_mini_untrained` for `x_mini` and `x_mini_w1a1`.

        The upstreams' names decide, not the labels that a matrix gives them.
        """
        wanted = BITS.sub("", self.name(upstream)) + UNTRAINED
        return next((other for other in self.upstreams if self.name(other) == wanted), None)

    def name(self, upstream: str) -> str:
        """Return the name in s3prl.hub of a row; its label is another if the matrix says so."""
        return next((result["name"] for result in self.of_upstream(upstream) if "name" in result), upstream)

    def gain(self, upstream: str, reference: str, task: str) -> Measured | None:
        """Return the gain over a reference upstream, paired by seed; positive is better. None without a shared seed."""
        ours, theirs = self.measured(upstream, task), self.measured(reference, task)
        shared = sorted(set(ours.values) & set(theirs.values)) if ours and theirs else []
        if not ours or not theirs or not shared:
            return None
        sign = 1 if TASKS[task].higher_is_better else -1
        return Measured({seed: sign * (ours.values[seed] - theirs.values[seed]) for seed in shared})


def collect(runs: list[Path]) -> Table:
    """Read every results.json below the run folders.

    Raises UserError if a folder has no results, or if two folders contain the same cell.
    """
    results: dict[tuple[str, str, int], dict[str, Any]] = {}
    upstreams: dict[str, None] = {}  # an ordered set
    failures: list[str] = []
    for folder in runs:
        record = read_record(folder)
        upstreams |= dict.fromkeys(record.get("upstreams", []))
        found, faulty = _read(folder)
        failures += faulty
        if not found:
            raise UserError(f"{folder} has no results: `superbit evaluate` writes them to cells/*/*/*/results.json")
        for result in found:
            cell = (result["upstream"], result["task"], result["seed"])
            if cell in results:
                raise UserError(
                    f"{folder} and another run folder both contain {cell[0]}/{cell[1]} seed {cell[2]}:"
                    " give folders with different seeds or with different upstream labels"
                )
            results[cell] = result
    upstreams |= dict.fromkeys(label for label, _, _ in sorted(results))
    return Table(
        results=list(results.values()),
        upstreams=[u for u in upstreams if any(label == u for label, _, _ in results)],
        tasks=[t for t in TASKS if any(task == t for _, task, _ in results)],
        failures=failures,
    )


def _read(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the usable results of a run folder, and for each unusable one its cell and the reason."""
    found, faulty = [], []
    for path in sorted(folder.glob("cells/*/*/*/results.json")):
        result = read_json(path)
        reason = "results.json is damaged" if result is None else fault(result)
        if result is not None and reason is None:
            commands = {key: here(result[key], path.parent) for key in ("command", "train_command")}
            found.append(result | commands | {"folder": str(path.parent)})
        else:
            faulty.append(f"{'/'.join(path.parts[-4:-1])}: {reason}")
    return found, faulty
