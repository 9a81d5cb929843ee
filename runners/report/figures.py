"""The report's pictures: score against cost, error by bit width, weights of the layers.

Each is narrow enough for a telephone, names its points directly, shows the spread over the seeds or says that there is
one seed, and has the same scale as its siblings.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from runners.report.canvas import colours, column_height, labelled_column, narrow, spread, wrapped
from runners.report.layer_weights import layer_weights
from runners.report.numbers import fixed
from runners.report.table import BASELINE, BITS, Table
from runners.tasks import TASKS

FLOAT = "w32a32"
SCORE_STORAGE = "score against storage"
Point = tuple[float, float, str]  # cost, score, upstream


def all_figures(table: Table, speeds: Mapping[str, float]) -> dict[str, dict[str, Figure]]:
    """Return the figures by section and title, without those that lack data.

    speeds: measured real-time factors by upstream; upstreams may be missing.
    """
    storage, macs = (
        {u: cost / unit for u in table.upstreams if (cost := table.cost(u, key)) is not None}
        for key, unit in (("storage_bytes", 1e6), ("macs", 1e9))
    )
    weights = {upstream: layer_weights(table, upstream) for upstream in table.upstreams}
    largest = max((max(row) for rows in weights.values() for row in rows.values()), default=1.0)
    sections: dict[str, dict[str, Figure | None]] = {
        "Score against cost": {
            SCORE_STORAGE: score_against_cost(table, storage, "storage of the weights (MB = 10⁶ bytes)"),
            "score against MACs": score_against_cost(table, macs, "GMACs of SUPERB's 32 utterances"),
            "score against real-time factor": score_against_cost(table, speeds, "measured real-time factor"),
        },
        "Error by bit width": {f"error by bit width, {task}": error_by_bits(table, task) for task in table.tasks},
        "Layer weights of the tasks": {
            f"layer weights of {upstream}": heat_map(rows, upstream, largest) for upstream, rows in weights.items()
        },
    }
    present = {
        section: {title: figure for title, figure in figures.items() if figure is not None}
        for section, figures in sections.items()
    }
    return {section: figures for section, figures in present.items() if figures}


def score_against_cost(table: Table, costs: Mapping[str, float], label: str) -> Figure | None:
    """Draw the mean score against a cost, one point for each upstream; None if no upstream has both.

    The dashed line joins the Pareto front: the filled points, which no other point beats in score at the same cost or
    less. Points that another one dominates are hollow.
    """
    scores = {u: score for u in table.upstreams if u in costs and (score := table.score(u)) is not None}
    points = [(costs[u], score.mean, u) for u, score in scores.items()]
    if not points:
        return None
    front = pareto_front(points)
    axes_height = max(2.2, 1.1 * column_height(scores))
    figure, axes = narrow(axes_height + 1.3)
    axes.plot([p[0] for p in front], [p[1] for p in front], "--", color="#888", linewidth=1, zorder=1, label="front")
    colour_of = colours(table.upstreams)
    for point in points:
        cost, mean, upstream = point
        colour = colour_of[upstream]
        face = colour if point in front else "white"
        error = scores[upstream].deviation
        axes.errorbar(cost, mean, error, fmt="o", color=colour, markerfacecolor=face, capsize=3, zorder=2)
    if max(costs[u] for u in scores) > 20 * min((costs[u] for u in scores if costs[u] > 0), default=1.0):
        # An upstream without weights has storage 0, which a plain logarithmic axis cannot show.
        axes.set_xscale("symlog", linthresh=min(costs[u] for u in scores if costs[u] > 0))
    axes.margins(x=0.12)
    every = [found for u in table.upstreams if (found := table.score(u)) is not None]
    top = max(found.mean + (found.deviation or 0) for found in every)
    axes.set_ylim(0, 1.08 * top)  # the same for every cost
    axes.set_xlabel(label)
    axes.set_ylabel(f"score, mean of {len(table.tasks)} tasks")
    if BASELINE in scores:
        axes.axhline(scores[BASELINE].mean, color=colour_of[BASELINE], linewidth=0.8, linestyle=":", zorder=0)
    missing = len(table.upstreams) - len(points)
    without = f"\n{missing} upstreams without a score or a known cost are not shown" if missing else ""
    axes.set_title(f"{spread(table.seeds())}\nfilled: Pareto front; dotted: {BASELINE}{without}", fontsize=9)
    labelled_column(axes, points, colour_of, axes_height)
    return figure


def pareto_front(points: list[Point]) -> list[Point]:
    """Return the points that no other dominates, by cost: none scores as high for less, or higher for the same cost."""
    return sorted(
        (cost, score, upstream)
        for cost, score, upstream in points
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s, _ in points)
    )


def error_by_bits(table: Table, task: str) -> Figure | None:
    """Draw a task's errors of each encoder at its bit widths; None if no encoder has two widths."""
    encoders: dict[str, list[str]] = {}
    for upstream in table.upstreams:
        encoders.setdefault(BITS.sub("", upstream), []).append(upstream)
    encoders = {name: sorted(rows, key=_widths, reverse=True) for name, rows in encoders.items() if len(rows) > 1}
    shown = [upstream for rows in encoders.values() for upstream in rows if table.measured(upstream, task)]
    if not shown:
        return None
    figure, axes = narrow(1.4 + 0.36 * len(shown))
    colour_of = colours(list(encoders))
    for place, upstream in enumerate(shown):
        mean, deviation = _error(table, upstream, task)
        colour = colour_of[BITS.sub("", upstream)]
        axes.errorbar(mean, place, xerr=deviation, fmt="o", color=colour, capsize=3)
        side = 1 if mean + deviation < 50 else -1
        axes.annotate(
            fixed(mean, 1),
            (mean + side * deviation, place),
            (7 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(shown)), map(wrapped, shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    # The same scale for every task. A word error rate may exceed 100 %.
    errors = [sum(_error(table, u, t)) for t in table.tasks for u in table.upstreams if table.measured(u, t)]
    axes.set_xlim(0, max(100.0, 1.03 * max(errors)))
    axes.set_xlabel(f"{table.title(task)[:-2].replace(TASKS[task].metric, '').strip()} error (%)")
    title = spread(table.seeds())
    if table.measured(BASELINE, task):
        axes.axvline(_error(table, BASELINE, task)[0], color="#666", linewidth=0.9, linestyle=":")
        title += f"\ndotted: {BASELINE}"
    axes.set_title(title, fontsize=9)
    return figure


def heat_map(weights: Mapping[str, list[float]], upstream: str, largest: float) -> Figure | None:
    """Draw the layer weights of an upstream, one row for each task; None without weights.

    largest: the weight at the end of the colour scale, the same for every upstream.
    """
    if not weights:
        return None
    figure, axes = narrow(1.3 + 0.3 * len(weights))
    image = axes.imshow(list(weights.values()), aspect="auto", cmap="viridis", vmin=0, vmax=largest)
    axes.set_yticks(range(len(weights)), [task.upper() for task in weights])
    states = len(next(iter(weights.values())))
    axes.set_xticks(range(0, states, 1 + states // 14))
    axes.set_xlabel("hidden state (0: input of the first block)")
    axes.set_title(upstream, fontsize=10)
    axes.grid(False)
    figure.colorbar(image, ax=axes, fraction=0.05, label="weight")
    return figure


def _error(table: Table, upstream: str, task: str) -> tuple[float, float]:
    """Return the mean error in percent and its deviation over the seeds, 0 with one seed."""
    measured = table.measured(upstream, task)
    assert measured is not None
    return 100 - measured.mean if TASKS[task].higher_is_better else measured.mean, measured.deviation or 0.0


def _widths(upstream: str) -> tuple[int, int]:
    match = BITS.search(upstream)
    weight, activation = (match[1] if match else FLOAT)[1:].split("a")
    return int(activation), int(weight)
