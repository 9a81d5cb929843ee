"""`superbit report`: write everything a report consists of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from runners.report import figures
from runners.report.html import as_html
from runners.report.latex import as_latex
from runners.report.table import collect
from runners.report.tensorboard import write_tensorboard
from runners.report.text import as_csv, as_markdown, print_table
from upstreams.errors import UserError
from upstreams.files import atomic_write


def report(runs: list[Path], out: Path | None = None, speeds: Mapping[str, float] | None = None) -> Path:
    """Write the report on the cells of one or more run folders, and print the table; return the path of table.md.

    out: folder of table.md, table.csv, table.tex, report.html, score_storage.png and tensorboard/; by default
    `default_folder(runs)`. score_storage.png needs an upstream that has a score and a known storage. speeds: measured
    real-time factors by upstream. Raises UserError if a folder has no results, or if two folders contain the same cell.
    """
    table = collect(runs)
    sections = figures.all_figures(table, speeds or {})
    pictures = {title: figure for section in sections.values() for title, figure in section.items()}
    markdown = as_markdown(table, runs)
    contents = {
        "table.md": markdown,
        "table.csv": as_csv(table),
        "table.tex": as_latex(table),
        "report.html": as_html(table, runs, sections, speeds or {}),
    }
    out = out or default_folder(runs)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    picture = out / "score_storage.png"
    if figures.SCORE_STORAGE in pictures:
        with atomic_write(picture) as temporary:
            pictures[figures.SCORE_STORAGE].savefig(temporary, format="png", dpi=160)
    else:
        picture.unlink(missing_ok=True)  # that of an earlier report
    write_tensorboard(table, markdown, pictures, out / "tensorboard")
    print_table(table)
    return out / "table.md"


def default_folder(runs: list[Path]) -> Path:
    """Return RUNS/report; of several run folders, report_A_B beside A, which has a report of its own.

    Raises UserError if the names are too long for a file system.
    """
    if len(runs) == 1:
        return runs[0] / "report"
    folders = [folder.absolute() for folder in runs]
    name = "_".join(["report", *(folder.name for folder in folders)])
    if len(name.encode()) > 200:
        raise UserError(f"the report on {len(runs)} run folders needs a folder of its own: give --out")
    return folders[0].parent / name


def report_of_run(runs: Path, say: Callable[[str], object]) -> None:
    """Write the report on a runs folder, and say where it is; do nothing if no cell of it has results yet."""
    if any(runs.glob("cells/*/*/seed*/**/results.json")):
        say(f"report: {report([runs], None, measured_speeds([runs]))}")


def measured_speeds(runs: list[Path]) -> dict[str, float]:
    """Return the real-time factors by upstream that `superbit evaluate` has measured in RUNS/measured."""
    files = [file for folder in runs for file in sorted(folder.glob("measured/*.json"))]
    return {file.stem: factor for file in files for factor in read_speeds(file).values()}


def read_speeds(path: Path) -> dict[str, float]:
    """Return real-time factors by upstream from the JSON of `superbit profile --measure` or of benchmarks.inference.

    If a name occurs several times in a benchmark, its first setting counts. `name/w1a1` becomes `name_w1a1`, and
    `name/fp32` becomes `name`. Raises UserError if the file does not exist or has another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["rows"] if isinstance(content, dict) else content
        pairs = [(row["name"].replace("/fp32", "").replace("/", "_"), float(row["real_time_factor"])) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the JSON of `superbit profile --measure`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must contain records with name and real_time_factor: {error!r}") from None
    return dict(reversed(pairs))
