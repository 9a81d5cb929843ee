"""The report's figures: what a score costs, what bits cost, which layers the tasks read."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runners.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runners.report.write import Table

BITS = re.compile(r"_(w\d+a\d+)$")
FLOAT = "w32a32"


def pareto(table: Table, costs: Mapping[str, float], what: str) -> Figure | None:
    """Mean score against a cost of each upstream; a line joins those that nothing cheaper equals. None without two."""
    points = [(costs[u], score, u) for u in table.upstreams if u in costs and (score := table.score(u)) is not None]
    if len(points) < 2:
        return None
    figure, axes = _figure(6.2, 3.6)
    front: list[tuple[float, float]] = []
    for cost, score, _ in sorted(points):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    axes.step(*zip(*front, strict=True), where="post", color="#888", linewidth=1, linestyle="--", zorder=1)
    for number, (cost, score, upstream) in enumerate(sorted(points, key=lambda point: -point[1])):
        axes.plot(cost, score, "osD^v"[number // 10 % 5], color=f"C{number % 10}", label=upstream, zorder=2)
    positive = [cost for cost, _, _ in points if cost > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_xscale("symlog", linthresh=min(positive))
    axes.set(xlabel=what, ylabel=f"mean of {len(table.tasks)} tasks (%)")
    axes.margins(x=0.08, y=0.15)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def bits_against_error(table: Table) -> Figure | None:
    """Each task's error against bits, a line an encoder: the paper's comparison. None without an encoder of two."""
    encoders: dict[str, dict[str, str]] = {}
    for upstream in table.upstreams:
        match = BITS.search(upstream)
        name = upstream[: match.start()] if match else upstream
        encoders.setdefault(name, {})[match[1] if match else FLOAT] = upstream
    encoders = {name: bits for name, bits in encoders.items() if len(bits) > 1}
    if not encoders:
        return None
    order = sorted({b for bits in encoders.values() for b in bits}, key=_width, reverse=True)
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
    """Weights of the tasks' sums over layers, a row a task. None without any."""
    if not weights:
        return None
    figure, axes = _figure(6.2, 0.9 + 0.32 * len(weights))
    image = axes.imshow(list(weights.values()), aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(weights)), [task.upper() for task in weights], fontsize=8)
    axes.set_xticks(range(len(next(iter(weights.values())))))
    axes.set_xlabel("hidden state (0: the first block's input)", fontsize=8)
    axes.set_title(upstream, fontsize=9)
    axes.grid(False)
    figure.colorbar(image, ax=axes, fraction=0.03)
    return figure


def as_svg(figure: Figure, title: str) -> str:
    """An <svg> element for a page, with a title for those who cannot see it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace(">", f' role="img" aria-label="{title}">', 1)


def _width(bits: str) -> tuple[int, int]:
    weight, activation = re.fullmatch(r"w(\d+)a(\d+)", bits).groups()  # type: ignore[union-attr]
    return int(activation), int(weight)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _figures(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = [figure.add_subplot(rows, columns, k + 1) for k in range(rows * columns)]
    for axes in grid:
        axes.grid(alpha=0.3)
    return figure, grid
