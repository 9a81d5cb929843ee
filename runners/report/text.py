"""The table as text: Markdown, CSV and the console."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas
from rich.console import Console
from rich.table import Table as Grid

from runners.report.notes import distinct, listed, notes
from runners.report.results import total_seconds
from runners.report.table import BASELINE, Measured, Table

CSV_COLUMNS = (
    *("upstream", "task", "metric", "value_percent", "higher_is_better", "parameters", "macs"),
    *("storage_bytes", "seconds", "seed", "learning_rate", "command", "train_command"),
)
COSTS = ("parameters", "MACs", "storage", "score")  # the last columns


def as_csv(table: Table) -> str:
    """Return one line for each cell, with the metric's value in percent."""
    lines = [result | {"seconds": round(total_seconds(result), 2)} for result in table.ordered()]
    # As objects: a column with an unknown cost would become a column of floats.
    return pandas.DataFrame(lines, columns=CSV_COLUMNS, dtype=object).to_csv(index=False, lineterminator="\n")


def as_markdown(table: Table, runs: list[Path]) -> str:
    """Return the table, its legend, comparisons with the baselines, the test commands and the provenance."""
    header = ["upstream", *map(table.title, table.tasks), *COSTS]
    rows = [_row(table, upstream, lambda text: f"**{text}**") for upstream in table.upstreams]
    parts = ["# SUPERB tasks on frozen upstreams", _grid(header, rows), _legend(table)]
    parts += _comparison(table, f"Against {BASELINE}", lambda upstream: BASELINE)
    parts += _comparison(table, "Against the untrained copy", table.untrained)
    parts += ["## Commands", _commands(table), "## Provenance", _provenance(table, runs)]
    return "\n\n".join(parts) + "\n"


def print_table(table: Table) -> None:
    """Print the table and its notes to the console."""
    grid = Grid(title="SUPERB tasks on frozen upstreams (percent; best in bold)")
    grid.add_column("upstream", no_wrap=True)
    # A title over several lines keeps its column as narrow as the figures.
    for name in (*(table.title(task).replace(" ", "\n") for task in table.tasks), *COSTS):
        grid.add_column(name, justify="right", no_wrap=True)
    for upstream in table.upstreams:
        grid.add_row(*_row(table, upstream, lambda text: f"[bold]{text}[/bold]"))
    console = Console()
    # As wide as the table, even if the terminal or pipe is narrower: truncated figures are worse than wrapped lines.
    wide = Console(width=1000)
    wide.width = max(console.width, wide.measure(grid).maximum)
    wide.print(grid, crop=False)
    for note in notes(table):
        console.print(f"Note: {note}", markup=False)


def _row(table: Table, upstream: str, emphasise: Callable[[str], str]) -> list[str]:
    cells = []
    for task in table.tasks:
        text = _text(table.measured(upstream, task))
        cells.append(emphasise(text) if table.is_best(upstream, task) else text)
    costs = (("parameters", ""), ("macs", ""), ("storage_bytes", "B"))
    score = table.score(upstream)
    return [
        upstream,
        *cells,
        *(_short(table.cost(upstream, key), unit) for key, unit in costs),
        "-" if score is None else f"{score:.1f}",
    ]


def _legend(table: Table) -> str:
    seeds = table.seeds()
    lines = [
        "All figures are in percent. ↑: higher is better. ↓: lower is better. The best figure of a column is bold."
        f" Seeds: {listed(seeds)}"
        + ("; mean ± standard deviation over the seeds." if len(seeds) > 1 else " (one seed: no deviation).")
    ]
    speech: dict[str, list[str]] = defaultdict(list)
    for task in table.tasks:
        speech[distinct(result["corpus"]["speech"] for result in table.of_task(task))].append(task.upper())
    lines.append("Speech: " + "; ".join(f"{kind} in {listed(tasks)}" for kind, tasks in speech.items()) + ".")
    for task, label in sorted({(result["task"], result["corpus"]["label"]) for result in table.results}):
        if label.startswith("synthetic"):
            lines.append(f"The {task.upper()} labels are {label}. They say nothing about the real task.")
    lines.append(
        "Storage is the size of the upstream's weights at their bit widths. MACs are the total over the 32 utterances"
        " of the SUPERB leaderboard. Score is the mean over the tasks; an error rate counts as 100 minus the rate, at"
        " least 0. It is not the leaderboard's score."
    )
    lines += [f"Note: {note}" for note in notes(table)]
    return "\n\n".join(lines)


def _comparison(table: Table, title: str, reference_of: Callable[[str], str | None]) -> list[str]:
    """Return the section of gains over reference upstreams; empty if no upstream has a reference in the table."""
    rows = []
    for upstream in table.upstreams:
        reference = reference_of(upstream)
        if reference is None or reference == upstream or reference not in table.upstreams:
            continue
        gains = [table.gain(upstream, reference, task) for task in table.tasks]
        known = [gain.mean for gain in gains if gain]
        wins = f"{sum(gain > 0 for gain in known)} of {len(known)}"
        rows.append([upstream, *(_text(gain, signed=True) for gain in gains), wins])
    if not rows:
        return []
    header = ["upstream", *(table.title(task)[:-2] for task in table.tasks), "tasks better"]
    note = (
        "Gain in percentage points, paired by seed. Positive is better, also for error rates. With several seeds:"
        " mean ± standard deviation over the seeds."
    )
    return [f"## {title}", note, _grid(header, rows)]


def _commands(table: Table) -> str:
    commands = "\n".join(result["command"] for result in table.ordered())
    return f"Each command repeats the test of one cell, row by row, and prints its figure.\n\n```\n{commands}\n```"


def _provenance(table: Table, runs: list[Path]) -> str:
    versions = sorted({name for result in table.results for name in result["versions"]})
    lines = [f"- run folders: {listed(runs)}", f"- cells: {len(table.results)}"]
    for name in versions:
        lines.append(f"- {name}: {distinct(result['versions'].get(name, '') for result in table.results)}")
    lines += [f"- {key}: {distinct(result[key] for result in table.results)}" for key in ("machine", "device")]
    lines += [f"- seconds of all cells: {sum(map(total_seconds, table.results)):.0f}"]
    return "\n".join(lines)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _text(measured: Measured | None, signed: bool = False) -> str:
    return "-" if measured is None else measured.text(signed)


def _short(number: int | None, unit: str) -> str:
    """Return `1.7 M`, `23.4 GB`; `-` if unknown."""
    if number is None:
        return "-"
    for size, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number} {unit}".strip()
