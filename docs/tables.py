"""The tables of docs/results.md and README.md, from the committed CSV files.

    python docs/tables.py                                       # write the tables again
    python docs/tables.py superb_mini runs/superb results.csv   # write the CSV file of a matrix that was evaluated

A page marks where a table belongs, and what it shows:

    <!-- results FILE.csv [ROWS] -->   each row: mean ± standard deviation over the seeds
    <!-- gains FILE.csv [ROWS] -->     each pre-trained row against its untrained copy, paired by seed; +: better
    <!-- drops FILE.csv [ROWS] -->     each row with bits against its row in full precision, paired by seed
    <!-- end -->

ROWS is a regular expression; without it, all rows are shown.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runners.report.table import BITS, UNTRAINED, Measured, Table, collect
from runners.tasks import TASKS

DOCS = Path(__file__).parent
PAGES = (DOCS / "results.md", DOCS.parent / "README.md")
COLUMNS = ("upstream", "task", "metric", "seed", "percent", "parameters", "macs", "storage_bytes")
ORIGIN = ("commit", "machine", "command")
MARK = re.compile(r"<!-- (results|gains|drops) (\S+\.csv)(?: (\S+))? -->\n(.*?)<!-- end -->", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="MATRIX RUNS CSV", help="write the CSV file of these runs instead")
    given = parser.parse_args().given
    if len(given) == 3:
        write_csv(given[0], Path(given[1]), Path(given[2]))
        return
    if given:
        parser.error("give nothing, or MATRIX RUNS CSV")
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """Return the text of a page with all of its tables written again."""
    return MARK.sub(_with_table, page)


def _with_table(found: re.Match[str]) -> str:
    kind, name, only, _ = found.groups()
    table = read_csv(DOCS / name)
    rows = {"results": _results, "gains": _gains, "drops": _drops}[kind](table)
    rows = [(upstream, cells) for upstream, cells in rows if not only or re.fullmatch(only, upstream)]
    head = found.group(0).partition("\n")[0]
    return f"{head}\n{_grid(table, rows)}\n<!-- end -->"


def write_csv(matrix: str, runs: Path, path: Path) -> None:
    """Write a line for each cell of a runs folder: its value in percent, its costs and where it comes from."""
    table = collect([runs])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *ORIGIN))
        for result in table.ordered():
            cell = f"--only '{result['upstream']}/{result['task']}' --seed {result['seed']}"
            writer.writerow(
                [
                    *(result[key] for key in ("upstream", "task", "metric", "seed")),
                    round(result["value_percent"], 4),
                    *(result[key] for key in COLUMNS[5:]),
                    result["versions"].get("commit", "")[:7],
                    result["machine"],
                    f"superbit evaluate {matrix} {cell}",
                ]
            )


def read_csv(path: Path) -> Table:
    """Return the table of a CSV file that `write_csv` wrote; rows and columns in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        lines: list[dict[str, Any]] = list(csv.DictReader(file))
    for line in lines:
        line |= {"seed": int(line["seed"]), "value_percent": float(line["percent"])}
        line["corpus"] = {"label": "synthetic" if line["task"] == "er" else ""}
    tasks = [task for task in TASKS if any(line["task"] == task for line in lines)]
    return Table(results=lines, upstreams=list(dict.fromkeys(line["upstream"] for line in lines)), tasks=tasks)


Rows = list[tuple[str, list[str]]]


def _results(table: Table) -> Rows:
    def cell(upstream: str, task: str) -> str:
        measured = table.measured(upstream, task)
        text = "-" if measured is None else measured.text()
        return f"**{text}**" if table.is_best(upstream, task) else text

    return [(upstream, [cell(upstream, task) for task in table.tasks]) for upstream in table.upstreams]


def _gains(table: Table) -> Rows:
    pairs = [(u, table.untrained(u)) for u in table.upstreams if not BITS.search(u) and not u.endswith(UNTRAINED)]
    return _differences(table, pairs)


def _drops(table: Table) -> Rows:
    return _differences(table, [(u, BITS.sub("", u)) for u in table.upstreams if BITS.search(u)])


def _differences(table: Table, pairs: Iterable[tuple[str, str | None]]) -> Rows:
    """Return how much better each first row is than the second; negative: worse."""
    rows = []
    for upstream, reference in pairs:
        if reference not in table.upstreams:
            continue
        gains = [table.gain(upstream, reference, task) for task in table.tasks]
        rows.append((upstream, ["-" if gain is None else _signed(gain) for gain in gains]))
    return rows


def _signed(gain: Measured) -> str:
    return gain.text(signed=True, digits=1)


def _grid(table: Table, rows: Rows) -> str:
    header = ["", *(_title(task) for task in table.tasks)]
    lines = [header, ["---"] * len(header), *([f"`{upstream}`", *cells] for upstream, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _title(task: str) -> str:
    synthetic = " (synthetic)" if task in ("asr", "er") else ""
    return f"{task.upper()}{synthetic} {'↑' if TASKS[task].higher_is_better else '↓'}"


if __name__ == "__main__":
    main()
