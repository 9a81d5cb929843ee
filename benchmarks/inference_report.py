"""Results of benchmarks.inference as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Row:
    """One row of the table."""

    name: str
    kernel: str  # of packed models; "" for other models
    threads: int
    seconds: float
    batch: int
    milliseconds: float
    real_time_factor: float
    megabytes: float  # on disk
    peak_megabytes: float  # peak memory of a process that loads the model and runs it once


def markdown(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = "| model | kernel | threads | s | batch | ms | real-time factor | MB on disk | MB peak |"
    lines = [head, "|" + "---|" * 9]
    for row in rows:
        values = (row.threads, f"{row.seconds:g}", row.batch, f"{row.milliseconds:.1f}", f"{row.real_time_factor:.5f}")
        cells = (row.name, row.kernel, *values, f"{row.megabytes:.2f}", f"{row.peak_megabytes:.0f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def picture(rows: list[Row], path: Path) -> None:
    """Plot real-time factor against storage for the first setting: one colour a model, one marker a variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    first = rows[0]
    setting = (first.threads, first.seconds, first.batch)
    points = {row.name: row for row in rows if (row.threads, row.seconds, row.batch) == setting}
    models = list(dict.fromkeys(name.partition("/")[0] for name in points))
    variants = list(dict.fromkeys(name.partition("/")[2] for name in points))
    colours = dict(zip(models, pyplot.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    markers = dict(zip(variants, "osD^vP*", strict=False))
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for model in models:
        own = [row for name, row in points.items() if name.partition("/")[0] == model]
        axes.plot([r.megabytes for r in own], [r.real_time_factor for r in own], color=colours[model], alpha=0.3)
        for row in own:
            marker = markers[row.name.partition("/")[2]]
            axes.plot(row.megabytes, row.real_time_factor, marker, color=colours[model], markersize=8)
    model_handles = [Line2D([], [], color=colours[model], linewidth=4, label=model) for model in models]
    variant_handles = [Line2D([], [], color="gray", marker=markers[v], linestyle="", label=v) for v in variants]
    axes.add_artist(axes.legend(handles=model_handles, loc="upper left", fontsize=8))
    axes.legend(handles=variant_handles, loc="lower right", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel="real-time factor")
    axes.set_title(
        f"{first.threads} thread{'s' if first.threads > 1 else ''}, {first.seconds:g} s, batch {first.batch}"
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
