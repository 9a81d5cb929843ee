"""The table of a matrix's cells: Markdown, CSV, terminal, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.matrix.record import read_record
from runners.report import published
from runners.tasks import TASKS
from upstreams.errors import UserError
from upstreams.files import atomic_write, read_json

CSV_COLUMNS = (
    *("upstream", "task", "metric", "value", "higher_is_better", "parameters", "macs"),
    *("storage_bytes", "seconds", "seed", "learning_rate", "command", "train_command"),
)
# What every results.json has.
NEEDED = (
    *("upstream", "task", "seed", "metric", "value", "command", "train_command", "corpus", "versions", "machine"),
    *("parameters", "macs", "storage_bytes", "seconds", "identity", "best_on_dev", "resumed_at_step", "device"),
)
BASELINE = "fbank_no_cmvn"
UNTRAINED = "_untrained"

# What a metric's figure is multiplied by to be in percent; s3prl gives ASR's error rates in percent already.
_PERCENT = {("asr", "wer"): 1.0, ("asr", "uer"): 1.0}


@dataclass(frozen=True)
class Measured:
    """One task of one upstream over its seeds; values by seed, in percent."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None of a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Table:
    """All results of the given runs, rows in the matrix's order, columns in SUPERB's."""

    results: list[dict[str, Any]]
    upstreams: list[str]
    tasks: list[str]
    failures: list[str] = field(default_factory=list)  # cells without a number, and why

    def measured(self, upstream: str, task: str) -> Measured | None:
        values = {
            result["seed"]: percent(result)
            for result in self.results
            if (result["upstream"], result["task"]) == (upstream, task)
        }
        return Measured(values) if values else None

    def ordered(self) -> list[dict[str, Any]]:
        """The results, row by row, column by column, seed by seed."""

        def place(result: dict[str, Any]) -> tuple[int, int, int]:
            return self.upstreams.index(result["upstream"]), self.tasks.index(result["task"]), result["seed"]

        return sorted(self.results, key=place)

    def cost(self, upstream: str, key: str) -> int | None:
        """`parameters`, `macs` or `storage_bytes` of an upstream; None where it is not known."""
        known = (result[key] for result in self.results if result["upstream"] == upstream)
        return next((int(value) for value in known if value is not None), None)

    def is_best(self, upstream: str, task: str) -> bool:
        """Whether no upstream has a better mean; of equal ones each is best."""
        means = {u: m.mean for u in self.upstreams if (m := self.measured(u, task))}
        choose = max if TASKS[task].higher_is_better else min
        return upstream in means and means[upstream] == choose(means.values())

    def score(self, upstream: str) -> float | None:
        """Mean over the table's tasks of the metric as a quality from 0 to 100; None unless all are measured.

        An accuracy or F1 counts as it is in percent, an error rate counts as 100 minus it and at least 0. It
        orders the upstreams of one table; it is not the SUPERB leaderboard's score.
        """
        qualities = []
        for task in self.tasks:
            measured = self.measured(upstream, task)
            if measured is None:
                return None
            qualities.append(measured.mean if TASKS[task].higher_is_better else max(0.0, 100 - measured.mean))
        return statistics.fmean(qualities)

    def superb_score(self, upstream: str) -> float | None:
        """The seven tasks' superb_s; None unless all are measured, on the real corpora."""
        results = [result for result in self.results if result["upstream"] == upstream]
        if any(not is_published(result["corpus"]) for result in results):
            return None
        figures = {task: m.mean for task in self.tasks if (m := self.measured(upstream, task))}
        rates = [100 * r["metrics"]["slot_value_cer"] for r in results if "slot_value_cer" in r.get("metrics", {})]
        if "sf" in figures and rates:
            figures["sf_cer"] = statistics.fmean(rates)
        return published.superb_score(figures)

    def is_comparable(self) -> bool:
        """Whether the cells' corpora are the published ones."""
        return all(is_published(result["corpus"]) for result in self.results)

    def title(self, task: str) -> str:
        """`KS acc ↑`, with "(synthetic)" where the corpus's labels are."""
        labels = {result["corpus"]["label"] for result in self.results if result["task"] == task}
        synthetic = " (synthetic)" if any(label.startswith("synthetic") for label in labels) else ""
        arrow = "↑" if TASKS[task].higher_is_better else "↓"
        return f"{task.upper()}{synthetic} {TASKS[task].metric} {arrow}"


def report(runs: list[Path], out: Path | None = None, speeds: Mapping[str, float] | None = None) -> Path:
    """Write the table of the cells in one runs' folder or several (of other seeds, say); return table.md.

    Writes table.md, table.csv, table.tex, report.html, score_storage.png and tensorboard/ into `out`, by default
    `report` in the first runs' folder, and prints the table. speeds: measured real-time factors by upstream. Raises
    UserError where a folder holds no results, and when two
    folders hold the same cell.
    """
    table = collect(runs)
    out = out or runs[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    markdown = as_markdown(table, runs)
    for name, text in (("table.md", markdown), ("table.csv", as_csv(table))):
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    # After the files: matplotlib and TensorBoard take seconds to import.
    from runners.report import html as html_report
    from runners.report import latex
    from runners.report import tensorboard as plots

    drawn = html_report.all_figures(table, speeds or {})
    page = html_report.as_html(table, runs, drawn, speeds or {})
    for name, text in (("report.html", page), ("table.tex", latex.as_latex(table))):
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    plot = out / "score_storage.png"
    plots.write_plot(table, plot)
    figures = {name: figure for section in drawn.values() for name, figure in section.items()}
    plots.write_tensorboard(table, markdown, plot, figures, out / "tensorboard")
    _print(table)
    return out / "table.md"


def collect(runs: list[Path]) -> Table:
    """Every results.json under the folders, ordered as their matrices are; raises UserError as `report` does."""
    results: dict[tuple[str, str, int], dict[str, Any]] = {}
    upstreams: dict[str, None] = {}  # in order, each once
    failures: list[str] = []
    for folder in runs:
        record = read_record(folder)
        upstreams |= dict.fromkeys(record.get("upstreams", []))
        paths = sorted(folder.glob("cells/*/*/*/results.json"))
        read = [(path, read_json(path)) for path in paths]
        found = [result for path, result in read if result is not None and fault(result) is None]
        failures += [
            f"{'/'.join(path.parts[-4:-1])}: {'results.json is damaged' if result is None else fault(result)}"
            for path, result in read
            if result is None or fault(result) is not None
        ]
        if not found:
            raise UserError(f"{folder} holds no results: cells/*/*/*/results.json as `superbit evaluate` writes them")
        for result in found:
            cell = (result["upstream"], result["task"], result["seed"])
            if cell in results:
                raise UserError(
                    f"{folder} and another of the folders both hold {cell[0]}/{cell[1]} of seed {cell[2]}:"
                    " give folders of different seeds, or upstreams of different labels"
                )
            results[cell] = result
    upstreams |= dict.fromkeys(label for label, _, _ in sorted(results))
    return Table(
        list(results.values()),
        [u for u in upstreams if any(label == u for label, _, _ in results)],
        [t for t in TASKS if any(task == t for _, task, _ in results)],
        failures,
    )


def read_speeds(path: Path) -> dict[str, float]:
    """Real-time factors by upstream, of a JSON file of `superbit profile --measure` or of benchmarks.inference.

    Of the latter the first setting counts, and `name/w1a1` is `name_w1a1`, `name/fp32` is `name`. Raises UserError when
    the file is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["rows"] if isinstance(content, dict) else content
        pairs = [(row["name"].replace("/fp32", "").replace("/", "_"), float(row["real_time_factor"])) for row in rows]
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must hold records with name and real_time_factor: {error!r}") from None
    return dict(reversed(pairs))


def fault(result: dict[str, Any]) -> str | None:
    """Why a cell's results cannot be in a table; None when they can."""
    missing = [key for key in NEEDED if key not in result]
    if missing:
        return f"results.json lacks {missing[0]}"
    if result["task"] not in TASKS:
        return f"results.json is of an unknown task, {result['task']!r}"
    value = result["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{result['metric']} is {value!r}, which is no result"
    return None


def is_published(corpus: dict[str, str]) -> bool:
    """Whether a cell's corpus is the published one, not an embedded one."""
    return corpus["label"] == "as published"


def percent(result: dict[str, Any]) -> float:
    """The result's value in percent."""
    return float(result["value"]) * _PERCENT.get((result["task"], result["metric"]), 100.0)


def as_csv(table: Table) -> str:
    """One row a cell, values as s3prl prints them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in table.ordered():
        seconds = round(sum(result["seconds"].values()), 2)
        writer.writerow(result | {"upstream": result["upstream"], "seconds": seconds})
    return file.getvalue()


def as_markdown(table: Table, runs: list[Path]) -> str:
    """The table, how to read it, and each upstream against the baselines."""
    header = [
        "upstream",
        *(table.title(task) for task in table.tasks),
        "parameters",
        "MACs",
        "storage",
        "score",
    ]
    rows = [_row(table, upstream, lambda text: f"**{text}**") for upstream in table.upstreams]
    parts = ["# SUPERB tasks on frozen upstreams", _grid(header, rows), _legend(table)]
    parts += _comparison(table, f"Against {BASELINE}", lambda upstream: BASELINE)
    parts += _comparison(table, "Against the untrained copy", lambda upstream: _untrained(table, upstream))
    parts += ["## Commands", _commands(table), "## Made with", _provenance(table, runs)]
    return "\n\n".join(parts) + "\n"


def _row(table: Table, upstream: str, emphasise: Callable[[str], str]) -> list[str]:
    cells = []
    for task in table.tasks:
        text = str(table.measured(upstream, task) or "-")
        cells.append(emphasise(text) if table.is_best(upstream, task) else text)
    costs = (table.cost(upstream, key) for key in ("parameters", "macs", "storage_bytes"))
    score = table.score(upstream)
    return [
        upstream,
        *cells,
        *(_short(cost, unit) for cost, unit in zip(costs, ("", "", "B"), strict=True)),
        "-" if score is None else f"{score:.1f}",
    ]


def _legend(table: Table) -> str:
    seeds = sorted({result["seed"] for result in table.results})
    lines = [
        f"All figures in percent; ↑ higher is better, ↓ lower is better; best in bold. Seeds: {_listed(seeds)}"
        + ("; mean ± standard deviation over them." if len(seeds) > 1 else " (one seed: no deviation).")
    ]
    speech: dict[str, list[str]] = defaultdict(list)
    for task in table.tasks:
        kinds = _distinct(r["corpus"]["speech"] for r in table.results if r["task"] == task)
        speech[kinds].append(task.upper())
    lines.append("Speech: " + "; ".join(f"{kind} in {_listed(tasks)}" for kind, tasks in speech.items()) + ".")
    for task, label in sorted({(r["task"], r["corpus"]["label"]) for r in table.results}):
        if label.startswith("synthetic"):
            lines.append(f"The labels of {task.upper()} are {label}. They say nothing about the real task.")
    lines.append(
        "Storage is the upstream's weights at their bits. MACs are summed over the SUPERB leaderboard's 32"
        " utterances. Score is the mean over the tasks, an error rate counted as 100 minus it and at least 0;"
        " it is not the leaderboard's score."
    )
    lines += [f"Note: {note}" for note in _notes(table)]
    return "\n\n".join(lines)


def _notes(table: Table) -> list[str]:
    """What a reader must know before comparing cells."""
    notes = []
    for task in table.tasks:
        of_task = [result for result in table.results if result["task"] == task]
        if len({str(sorted(result["identity"]["config"].items())) for result in of_task}) > 1:
            notes.append(f"the cells of {task} have different configurations: each cell's config.yaml has its own.")
        if len({result["identity"]["corpus_sha256"] for result in of_task}) > 1:
            notes.append(f"the cells of {task} were run on different builds of the corpora.")
        if last := [f"{r['upstream']} seed {r['seed']}" for r in of_task if not r["best_on_dev"]]:
            notes.append(f"{task}, {_listed(last)}: nothing was ever best on dev; the last states were tested.")
        if deviations := [
            f"{r['upstream']} {100 * r['fold_deviation']:.2f} ({len(r['folds'])} folds, seed {r['seed']})"
            for r in of_task
            if "folds" in r
        ]:
            notes.append(f"{task} is the mean over folds, whose standard deviations are: {_listed(deviations)}.")
        if task == "er" and (alone := [r["upstream"] for r in of_task if "folds" not in r]):
            notes.append(f"er of {_listed(dict.fromkeys(alone))} is of one fold, where SUPERB takes the mean of five.")
        measured = {u: m for u in table.upstreams if (m := table.measured(u, task))}
        if len({tuple(sorted(m.values)) for m in measured.values()}) > 1:
            counts = _listed(f"{upstream} {len(m.values)}" for upstream, m in measured.items())
            notes.append(f"the means of {task} are over different seeds (number of seeds: {counts}).")
    notes += [f"without a number: {failure}." for failure in table.failures]
    if resumed := [f"{r['upstream']}/{r['task']}" for r in table.results if r["resumed_at_step"] is not None]:
        notes.append(f"{_listed(resumed)} went on after an interruption, which s3prl does not repeat bit by bit.")
    return notes


def _comparison(table: Table, title: str, reference_of: Callable[[str], str | None]) -> list[str]:
    """Gains over a reference upstream, paired by seed; nothing when no upstream has one."""
    rows = []
    for upstream in table.upstreams:
        reference = reference_of(upstream)
        if reference is None or reference == upstream or reference not in table.upstreams:
            continue
        gains = {task: _gain(table, upstream, reference, task) for task in table.tasks}
        known = [gain.mean for gain in gains.values() if gain]
        wins = f"{sum(gain > 0 for gain in known)} of {len(known)}"
        rows.append([upstream, *(_signed(gain) for gain in gains.values()), wins])
    if not rows:
        return []
    header = ["upstream", *(table.title(task)[:-2] for task in table.tasks), "tasks better"]
    note = "Points of percent gained, positive is better whatever the metric; mean and deviation over the seeds."
    return [f"## {title}", note, _grid(header, rows)]


def _gain(table: Table, upstream: str, reference: str, task: str) -> Measured | None:
    ours, theirs = table.measured(upstream, task), table.measured(reference, task)
    shared = sorted(set(ours.values) & set(theirs.values)) if ours and theirs else []
    if not ours or not theirs or not shared:
        return None
    sign = 1 if TASKS[task].higher_is_better else -1
    return Measured({seed: sign * (ours.values[seed] - theirs.values[seed]) for seed in shared})


def _signed(gain: Measured | None) -> str:
    if gain is None:
        return "-"
    return f"{gain.mean:+.2f}" if gain.deviation is None else f"{gain.mean:+.2f} ± {gain.deviation:.2f}"


def _untrained(table: Table, upstream: str) -> str | None:
    """`x_mini_untrained` for `x_mini` and `x_mini_w1a1`."""
    copies = [other for other in table.upstreams if other.endswith(UNTRAINED)]
    return next((copy for copy in copies if upstream.startswith(copy.removesuffix(UNTRAINED))), None)


def _commands(table: Table) -> str:
    commands = "\n".join(result["command"] for result in table.ordered())
    return f"Each prints its cell's figure again, row by row.\n\n```\n{commands}\n```"


def _provenance(table: Table, runs: list[Path]) -> str:
    versions = sorted({name for result in table.results for name in result["versions"]})
    lines = [f"- runs: {_listed(str(folder) for folder in runs)}", f"- cells: {len(table.results)}"]
    for name in versions:
        lines.append(f"- {name}: {_distinct(r['versions'].get(name, '') for r in table.results)}")
    lines += [f"- machine: {_distinct(r['machine'] for r in table.results)}"]
    lines += [f"- device: {_distinct(r['device'] for r in table.results)}"]
    lines += [f"- seconds of all cells: {sum(sum(r['seconds'].values()) for r in table.results):.0f}"]
    return "\n".join(lines)


def _print(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    grid = RichTable(title="SUPERB tasks on frozen upstreams (percent; best in bold)")
    grid.add_column("upstream", no_wrap=True)
    # A title over several lines keeps its column as narrow as its figures.
    titles = (table.title(task).replace(" ", "\n") for task in table.tasks)
    for name in (*titles, "parameters", "MACs", "storage", "score"):
        grid.add_column(name, justify="right", no_wrap=True)
    for upstream in table.upstreams:
        grid.add_row(*_row(table, upstream, lambda text: f"[bold]{text}[/bold]"))
    console = Console()
    # As wide as the table, whatever a narrow terminal or a pipe claims: cut figures are worse than broken lines.
    wide = Console(width=1000)
    wide.width = max(console.width, wide.measure(grid).maximum)
    wide.print(grid, crop=False)
    for note in _notes(table):
        console.print(f"Note: {note}", markup=False)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _short(number: int | None, unit: str) -> str:
    """`1.7 M`, `23.4 GB`."""
    if number is None:
        return "-"
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number} {unit}".strip()


def _distinct(things: Iterable[object]) -> str:
    return _listed(sorted({str(thing) for thing in things}))


def _listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
