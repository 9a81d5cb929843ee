"""The report's table in LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runners.report import published
from runners.tasks import TASKS

if TYPE_CHECKING:
    from runners.report.write import Table

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


def as_latex(table: Table) -> str:
    """A `table` environment for \\usepackage{booktabs}: our rows and, where comparable, the published ones."""
    columns = [f"{task.upper()} $\\{'up' if TASKS[task].higher_is_better else 'down'}arrow$" for task in table.tasks]
    rows = [_ours(table, upstream) for upstream in table.upstreams]
    body = [" & ".join(row) + r" \\" for row in rows]
    if table.is_comparable():
        body += [
            r"\midrule",
            *(" & ".join(_theirs(row, table.tasks)) + r" \\" for row in published.published()["rows"]),
        ]
        remark = "Below the line: as published."
    else:
        remark = "On embedded corpora: not comparable with published figures."
    seeds = len({result["seed"] for result in table.results})
    over = f"mean $\\pm$ standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        r"\begin{table}",
        rf"\caption{{SUPERB tasks on frozen upstreams, in percent ({over}). {remark}}}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}rr}}",
        r"\toprule",
        " & ".join(["Upstream", *columns, "M parameters", "GMACs"]) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """The text with LaTeX's special characters as they are to be printed."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _ours(table: Table, upstream: str) -> list[str]:
    cells = []
    for task in table.tasks:
        measured = table.measured(upstream, task)
        text = "--" if measured is None else str(measured).replace("±", r"$\pm$")
        cells.append(rf"\textbf{{{text}}}" if measured and table.is_best(upstream, task) else text)
    parameters, macs = table.cost(upstream, "parameters"), table.cost(upstream, "macs")
    costs = [
        "--" if parameters is None else f"{parameters / 1e6:.2f}",
        "--" if macs is None else f"{macs / 1e9:.2f}",
    ]
    return [escaped(upstream), *cells, *costs]


def _theirs(row: Mapping[str, Any], tasks: list[str]) -> list[str]:
    figures = [f"{row[key]:.2f}" if key in row else "--" for key in (*tasks, "parameters", "macs")]
    return [escaped(row["name"]), *figures]
