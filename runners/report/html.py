"""The report as one self-contained page: sortable tables, notes, figures, and the origin of each number."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from runners.report import comparison
from runners.report.canvas import as_svg
from runners.report.legend import has_superb_score, legend, seeds
from runners.report.note import marks
from runners.report.notes import notes
from runners.report.numbers import fixed
from runners.report.published import METRICS, SUPERB_S, published, scale, superb_score
from runners.report.results import deviations
from runners.report.table import Table
from runners.tasks import TASKS


def as_html(
    table: Table, runs: list[Path], sections: Mapping[str, Mapping[str, Figure]], speeds: Mapping[str, float]
) -> str:
    """Return the page of page.html.jinja.

    sections: `figures.all_figures`. speeds: measured real-time factors by upstream; upstreams may be missing.
    """
    environment = Environment(
        loader=PackageLoader("runners.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawn = {
        section: {title: Markup(as_svg(figure)) for title, figure in figures.items()}
        for section, figures in sections.items()
    }
    return environment.get_template("page.html.jinja").render(
        table=table,
        titles=[table.title(task) for task in table.tasks],
        runs=runs,
        seeds=seeds(table),
        legend=legend(table),
        notes=notes(table),
        marks=marks,
        comparisons=comparison.comparisons(table),
        comparison_note=comparison.NOTE,
        comparison_columns=comparison.columns(table),
        sections=drawn,
        speeds=speeds,
        has_superb_score=has_superb_score(table),
        superb_s=SUPERB_S,
        superb_score=superb_score,
        superb_scale=scale(),
        published=published(),
        published_metrics={name: _title(name) for metrics in METRICS.values() for name in metrics},
        deviations=deviations,
        fixed=fixed,
        anchor=_anchor,
        style=_packaged("report.css"),
        script=_packaged("report.js"),
    )


def _title(metric: str) -> str:
    """Return the column's title of a published metric, such as `SF CER ↓`."""
    higher_is_better = metric in TASKS and TASKS[metric].higher_is_better
    return f"{metric.upper().replace('_', ' ')} {'↑' if higher_is_better else '↓'}"


def _anchor(upstream: str, task: str, seed: int) -> str:
    """Return the id of a cell's element in the page."""
    return "cell-" + "".join(c if c.isalnum() else "-" for c in f"{upstream}-{task}-{seed}")


def _packaged(name: str) -> Markup:
    return Markup((resources.files("runners.report") / name).read_text(encoding="utf-8"))
