"""What the figures share: their width, colours, and labels beside the points."""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.colors import to_hex

# Figure alone, without pyplot, needs no display and keeps no global state.
from matplotlib.figure import Figure

WIDTH = 4.8  # inches: about a telephone's, so that text of 9 points stays as large there
LABEL_LETTERS = 18  # in a line of a label beside the points
LINE = 0.155  # inches from line to line of a label
TEN = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#6b6b6b", "#9a9a00", "#0aa5b5")


def narrow(height: float) -> tuple[Figure, Axes]:
    """Return a figure of the common width with one pair of axes; height: in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=9)
    return figure, axes


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour of its own for each name."""
    if len(names) <= len(TEN):
        return dict(zip(names, TEN, strict=False))
    # Around the circle of hues, alternately dark and light.
    shades = [colorsys.hls_to_rgb(k / len(names), 0.3 if k % 2 else 0.43, 0.85) for k in range(len(names))]
    return {name: to_hex(shade) for name, shade in zip(names, shades, strict=True)}


def spread(seeds: Sequence[int]) -> str:
    """Return what the error bars are."""
    if len(seeds) > 1:
        return f"mean ± standard deviation over {len(seeds)} seeds"
    return "one seed: no spread is known"


def wrapped(name: str) -> str:
    """Return the name in lines that end behind an underscore."""
    return "\n".join(textwrap.wrap(name.replace("_", "_ "), LABEL_LETTERS)).replace("_ ", "_")


def column_height(names: Iterable[str]) -> float:
    """Return the height in inches that a `labelled_column` of these names needs."""
    return LINE * sum(map(_lines, map(wrapped, names)))


def labelled_column(
    axes: Axes, points: Sequence[tuple[float, float, str]], colour_of: Mapping[str, str], axes_height: float
) -> None:
    """Write the points' names in a column right of the axes, each with a thin line to its point.

    axes_height: approximate height of the axes in inches, which the labels share.
    """
    low, high = axes.get_ylim()
    line = LINE / axes_height * (high - low)
    ordered = sorted(points, key=lambda point: -point[1])
    names = [wrapped(name) for *_, name in ordered]
    halves = [line * _lines(name) / 2 for name in names]
    places = _apart([score for _, score, _ in ordered], halves, low, high)
    for (cost, score, upstream), name, place in zip(ordered, names, places, strict=True):
        colour = colour_of[upstream]
        axes.annotate(
            name,
            xy=(cost, score),
            xytext=(1.06, place),
            textcoords=axes.get_yaxis_transform(),
            fontsize=9,
            color=colour,
            va="center",
            linespacing=1.0,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def _lines(label: str) -> float:
    return label.count("\n") + 1.3  # with a gap to the next label


def as_svg(figure: Figure) -> str:
    """Return the figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _apart(wanted: Sequence[float], halves: Sequence[float], low: float, high: float) -> list[float]:
    """Return places from high to low, as near to the wanted ones as labels of these half heights allow."""
    offsets = [sum(halves[: k + 1]) + sum(halves[:k]) for k in range(len(halves))]  # of a column without gaps
    # Labels that would overlap form a block around the mean of their wanted places (isotonic regression).
    blocks: list[list[float]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        blocks.append([place + offset])
        while len(blocks) > 1 and fmean(blocks[-2]) < fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    tops = [fmean(block) for block in blocks for _ in block]
    lowest = low + sum(halves) * 2
    return [min(high, max(lowest, top)) - offset for top, offset in zip(tops, offsets, strict=True)]
