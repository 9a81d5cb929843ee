"""The table of results in LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runners.report.note import Note, marks
from runners.report.notes import notes
from runners.report.numbers import fixed
from runners.report.published import published
from runners.report.table import Table
from runners.tasks import TASKS

SPECIAL = {"±": r"$\pm$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def as_latex(table: Table) -> str:
    """Return a `table` environment for \\usepackage{booktabs}: our rows, and the published rows if comparable."""
    found = notes(table)
    columns = [f"{task.upper()} $\\{'up' if TASKS[task].higher_is_better else 'down'}arrow$" for task in table.tasks]
    body = [_line(_ours(table, upstream, found)) for upstream in table.upstreams]
    if table.is_comparable():
        body += [r"\midrule", *(_line(_theirs(row, table.tasks)) for row in published()["rows"])]
        remark = "Below the line: published results."
    else:
        remark = "Not on the published corpora with the official settings: not comparable with published results."
    seeds = len(table.seeds())
    over = f"mean $\\pm$ standard deviation over {seeds} seeds" if seeds > 1 else "one seed, so no spread is known"
    lines = [
        r"\begin{table}",
        rf"\caption{{SUPERB tasks on frozen upstreams, in percent ({over}). {remark}}}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}rrr}}",
        r"\toprule",
        _line(["Upstream", *columns, "M parameters", "GMACs", "notes"]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(["", r"\raggedright\footnotesize"] if found else []),
        *(rf"Note {number}: {escaped(note.text)}\par" for number, note in enumerate(found, start=1)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _ours(table: Table, upstream: str, found: Sequence[Note]) -> list[str]:
    cells = []
    for task in table.tasks:
        measured = table.measured(upstream, task)
        text = "--" if measured is None else measured.text().replace("±", r"$\pm$")
        cells.append(rf"\textbf{{{text}}}" if table.is_best(upstream, task) else text)
    parameters, macs = table.cost(upstream, "parameters"), table.cost(upstream, "macs")
    return [escaped(upstream), *cells, _number(parameters, 1e6), _number(macs, 1e9), marks(found, upstream) or "--"]


def _theirs(row: Mapping[str, Any], tasks: list[str]) -> list[str]:
    return [escaped(row["name"]), *(_number(row.get(key), 1) for key in (*tasks, "parameters", "macs")), "--"]


def _number(number: float | None, unit: float) -> str:
    return "--" if number is None else fixed(number, unit=unit)
