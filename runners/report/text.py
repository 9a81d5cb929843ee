"""The table as text: Markdown, CSV and the console."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
from rich.console import Console
from rich.table import Table as Grid

from runners.report import comparison
from runners.report.comparison import comparisons
from runners.report.legend import distinct, has_superb_score, legend, seeds
from runners.report.note import Note, listed, marks
from runners.report.notes import notes
from runners.report.numbers import fixed, short
from runners.report.published import SUPERB_S
from runners.report.results import deviations, total_seconds
from runners.report.table import Measured, Table

CSV_COLUMNS = (
    *("upstream", "task", "metric", "value_percent", "higher_is_better", "parameters", "macs", "storage_bytes"),
    *("seconds_training", "seconds_test", "seed", "learning_rate", "checkpoint_sha256", "commit", "torch"),
    *("torchaudio", "s3prl", "device", "machine", "deviations", "command", "train_command"),
)


def as_csv(table: Table) -> str:
    """Return one line for each cell, with the metric's value in percent and the cell's origin."""
    lines = [_csv_line(result) for result in table.ordered()]
    # As objects: a column with an unknown cost would become a column of floats.
    return pandas.DataFrame(lines, columns=CSV_COLUMNS, dtype=object).to_csv(index=False, lineterminator="\n")


def as_markdown(table: Table, runs: list[Path]) -> str:
    """Return the table, its legend, comparisons with the baselines, the test commands and the provenance."""
    found = notes(table)
    rows = [_row(table, upstream, found, lambda text: f"**{text}**") for upstream in table.upstreams]
    parts = ["# SUPERB tasks on frozen upstreams", _grid(_columns(table, found), rows)]
    parts += ["The best figure of a column is bold.", *legend(table)]
    parts += [f"Note {number}: {note.text}" for number, note in enumerate(found, start=1)]
    for each in comparisons(table):
        gains = [
            [upstream, *(_text(gain, signed=True) for gain in of_tasks), each.wins(upstream)]
            for upstream, of_tasks in each.gains.items()
        ]
        parts += [f"## {each.title}", comparison.NOTE, _grid(comparison.columns(table), gains)]
    parts += ["## Commands", _commands(table), "## Provenance", _provenance(table, runs)]
    return "\n\n".join(parts) + "\n"


def print_table(table: Table) -> None:
    """Print the table and its notes to the console."""
    found = notes(table)
    grid = Grid(title="SUPERB tasks on frozen upstreams (percent; best in bold)")
    grid.add_column("upstream", no_wrap=True)
    # A title over several lines keeps its column as narrow as the figures.
    for name in _columns(table, found)[1:]:
        grid.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for upstream in table.upstreams:
        grid.add_row(*_row(table, upstream, found, lambda text: f"[bold]{text}[/bold]"))
    console = Console()
    # As wide as the table, even if the terminal or pipe is narrower: truncated figures are worse than wrapped lines.
    wide = Console(width=1000)
    wide.width = max(console.width, wide.measure(grid).maximum)
    wide.print(grid, crop=False)
    console.print(seeds(table), markup=False, highlight=False)
    for number, note in enumerate(found, start=1):
        console.print(f"Note {number}: {note.text}", markup=False)


def _columns(table: Table, found: Sequence[Note]) -> list[str]:
    score = ["score", *([SUPERB_S] if has_superb_score(table) else [])]
    marked = ["notes"] if any(note.upstreams for note in found) else []
    return ["upstream", *map(table.title, table.tasks), "parameters", "MACs", "storage", *score, *marked]


def _row(table: Table, upstream: str, found: Sequence[Note], emphasise: Callable[[str], str]) -> list[str]:
    cells = []
    for task in table.tasks:
        text = _text(table.measured(upstream, task))
        cells.append(emphasise(text) if table.is_best(upstream, task) else text)
    costs = (("parameters", ""), ("macs", ""), ("storage_bytes", "B"))
    cells += [short(table.cost(upstream, key), unit) for key, unit in costs]
    score = table.score(upstream)
    cells.append("-" if score is None else score.text(digits=1))
    if has_superb_score(table):
        cells.append(fixed(table.superb_score(upstream), 0))
    if any(note.upstreams for note in found):
        cells.append(marks(found, upstream) or "-")
    return [upstream, *cells]


def _csv_line(result: dict[str, Any]) -> dict[str, Any]:
    seconds = {"seconds_training": result["seconds"]["train"], "seconds_test": result["seconds"]["evaluate"]}
    return {**result, **seconds, **result["versions"], "deviations": "; ".join(deviations(result))}


def _commands(table: Table) -> str:
    commands = "\n".join(result["command"] for result in table.ordered())
    return f"Each command repeats the test of one cell, row by row, and prints its figure.\n\n```\n{commands}\n```"


def _provenance(table: Table, runs: list[Path]) -> str:
    versions = sorted({name for result in table.results for name in result["versions"]})
    lines = [f"- run folders: {listed(runs)}", f"- cells: {len(table.results)}"]
    for name in versions:
        lines.append(f"- {name}: {distinct(result['versions'].get(name) or 'unknown' for result in table.results)}")
    lines += [f"- {key}: {distinct(result[key] for result in table.results)}" for key in ("machine", "device")]
    lines += [f"- seconds of training and tests, all cells: {sum(map(total_seconds, table.results)):.0f}"]
    return "\n".join(lines)


def _grid(header: list[str], rows: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _text(measured: Measured | None, signed: bool = False) -> str:
    return "-" if measured is None else measured.text(signed)
