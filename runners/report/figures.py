"""The report's pictures: score against cost, bit width against error, weights of the layers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

from matplotlib.axes import Axes

# Figure alone, without pyplot, needs no display and keeps no global state.
from matplotlib.figure import Figure

from runners.report.layer_weights import layer_weights
from runners.report.table import Table
from runners.tasks import TASKS

BITS = re.compile(r"_(w\d+a\d+)$")
FLOAT = "w32a32"
SCORE_STORAGE = "score against storage"


def all_figures(table: Table, speeds: Mapping[str, float]) -> dict[str, dict[str, Figure]]:
    """Return the figures by section and title, without those that lack data.

    speeds: measured real-time factors by upstream; upstreams may be missing.
    """
    storage, macs = (
        {u: cost / unit for u in table.upstreams if (cost := table.cost(u, key)) is not None}
        for key, unit in (("storage_bytes", 1e6), ("macs", 1e9))
    )
    sections: dict[str, dict[str, Figure | None]] = {
        "Score against cost": {
            SCORE_STORAGE: score_against_cost(table, storage, "storage of the weights (MB)"),
            "score against MACs": score_against_cost(table, macs, "GMACs of SUPERB's 32 utterances"),
            "score against real-time factor": score_against_cost(table, speeds, "measured real-time factor"),
        },
        "Bit width against error": {"bit width against error": bits_against_error(table)},
        "Layer weights of the tasks": {
            f"layer weights of {upstream}": heat_map(layer_weights(table, upstream), upstream)
            for upstream in table.upstreams
        },
    }
    present = {
        section: {title: figure for title, figure in figures.items() if figure is not None}
        for section, figures in sections.items()
    }
    return {section: figures for section, figures in present.items() if figures}


def score_against_cost(table: Table, costs: Mapping[str, float], label: str) -> Figure | None:
    """Draw the mean score against a cost, one point for each upstream; None if no upstream has both.

    The dashed line is the Pareto front: it joins the upstreams that score higher than every cheaper one.
    """
    points = [(costs[u], score, u) for u in table.upstreams if u in costs and (score := table.score(u)) is not None]
    if not points:
        return None
    figure, axes = _figure(7, 4)
    front: list[tuple[float, float]] = []
    for cost, score, _ in sorted(points):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    axes.step(*zip(*front, strict=True), where="post", color="#888", linewidth=1, linestyle="--", zorder=1)
    for number, (cost, score, upstream) in enumerate(sorted(points, key=lambda point: -point[1])):
        # Ten colours, then the same colours with other markers.
        axes.plot(cost, score, "osD^v"[number // 10 % 5], color=f"C{number % 10}", label=upstream, zorder=2)
    positive = [cost for cost, _, _ in points if cost > 0]
    if positive and max(positive) > 20 * min(positive):
        # An upstream without weights has storage 0, which a plain logarithmic axis cannot show.
        axes.set_xscale("symlog", linthresh=min(positive))
    axes.set(xlabel=label, ylabel=f"mean score of {len(table.tasks)} tasks")
    missing = len(table.upstreams) - len(points)
    remark = f"\nnot shown: {missing} upstreams without a result for every task or without a known cost"
    axes.set_title(
        f"score: accuracy or F1 in %, or 100 - error rate in %, at least 0{remark if missing else ''}", fontsize=8
    )
    axes.margins(x=0.08, y=0.15)
    figure.legend(loc="outside right upper", fontsize=7, title="best first", title_fontsize=7)
    return figure


def bits_against_error(table: Table) -> Figure | None:
    """Draw each task's error against the bit width, one line for each encoder; None if no encoder has two widths."""
    encoders: dict[str, dict[str, str]] = {}
    for upstream in table.upstreams:
        match = BITS.search(upstream)
        name = upstream[: match.start()] if match else upstream
        encoders.setdefault(name, {})[match[1] if match else FLOAT] = upstream
    encoders = {name: bits for name, bits in encoders.items() if len(bits) > 1}
    if not encoders:
        return None
    order = sorted({b for bits in encoders.values() for b in bits}, key=_bit_widths, reverse=True)
    rows = -(-len(table.tasks) // 4)
    figure, grid = _figures(rows, min(4, len(table.tasks)), 10, 2.5 * rows)
    for axes, task in zip(grid, table.tasks, strict=False):
        for number, (name, bits) in enumerate(encoders.items()):
            known = [(k, m) for k, b in enumerate(order) if b in bits and (m := table.measured(bits[b], task))]
            errors = [100 - m.mean if TASKS[task].higher_is_better else m.mean for _, m in known]
            axes.errorbar(
                [k for k, _ in known],
                errors,
                [m.deviation or 0 for _, m in known],
                marker="o",
                markersize=4,
                capsize=3,
                color=f"C{number}",
                label=name,
            )
        axes.set_xticks(range(len(order)), order, fontsize=7)
        axes.set_title(f"{task.upper()} error (%)", fontsize=9)
    for axes in grid[len(table.tasks) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def heat_map(weights: Mapping[str, list[float]], upstream: str) -> Figure | None:
    """Draw the layer weights of an upstream, one row for each task; None without weights."""
    if not weights:
        return None
    figure, axes = _figure(6.2, 0.9 + 0.32 * len(weights))
    image = axes.imshow(list(weights.values()), aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(weights)), [task.upper() for task in weights], fontsize=8)
    axes.set_xticks(range(len(next(iter(weights.values())))))
    axes.set_xlabel("hidden state (0: input of the first block)", fontsize=8)
    axes.set_title(upstream, fontsize=9)
    axes.grid(False)
    figure.colorbar(image, ax=axes, fraction=0.03)
    return figure


def as_svg(figure: Figure) -> str:
    """Return the figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _bit_widths(bits: str) -> tuple[int, int]:
    weight, activation = re.fullmatch(r"w(\d+)a(\d+)", bits).groups()  # type: ignore[union-attr]
    return int(activation), int(weight)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _figures(1, 1, width, height)
    return figure, axes


def _figures(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = [figure.add_subplot(rows, columns, k + 1) for k in range(rows * columns)]
    for axes in grid:
        axes.grid(alpha=0.3)
    return figure, grid
