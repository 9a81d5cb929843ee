"""The figures do not mislead: a true Pareto front, shared scales, spread or one seed, readable on a telephone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from runners.report.canvas import WIDTH, colours
from runners.report.figures import all_figures, error_by_bits, pareto_front, score_against_cost
from runners.report.table import Table, collect
from tests.runners.report.fake_cells import UPSTREAMS, write_cell, write_runs

SMALLEST = 9.0  # points in a figure of WIDTH, which a telephone shows at about its size


def all_in(table: Table) -> list[Figure]:
    return [figure for section in all_figures(table, {}).values() for figure in section.values()]


def test_the_pareto_line_passes_through_no_dominated_point(tmp_path: Path) -> None:
    # Of equal cost, of equal score, and dominated at a cost in between.
    storage = {"cheap": 0, "poor": 10, "good": 10, "dear": 30, "same": 40, "best": 50}
    score = {"cheap": 0.1, "poor": 0.2, "good": 0.5, "dear": 0.4, "same": 0.5, "best": 0.9}
    for label, bytes_ in storage.items():
        write_cell(tmp_path, label, "ks", 1, score[label], storage_bytes=bytes_)
    table = collect([tmp_path])
    figure = score_against_cost(table, {u: float(s) for u, s in storage.items()}, "storage")
    assert figure is not None
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "front")
    assert line.get_drawstyle() == "default"
    assert list(zip(*line.get_data(), strict=True)) == [(0, 10), (10, pytest.approx(50)), (50, pytest.approx(90))]
    assert [name for *_, name in pareto_front([(1, 2, "a"), (1, 2, "b"), (1, 1, "c")])] == ["a", "b"]


@pytest.mark.parametrize("number", [2, 10, 11, 40])
def test_no_two_upstreams_share_a_colour(number: int) -> None:
    names = [f"upstream{k}" for k in range(number)]
    assert len({to_rgba(colour) for colour in colours(names).values()}) == number


def test_errors_by_bit_width_have_one_scale_no_lines_between_categories_and_the_baseline(tmp_path: Path) -> None:
    table = collect([write_runs(tmp_path / "runs", seed=1)])
    figures = [error_by_bits(table, task) for task in table.tasks]
    axes = [figure.axes[0] for figure in figures if figure is not None]
    assert len(axes) == 3 and [each.get_xlim() for each in axes] == [(0.0, pytest.approx(101.97))] * 3
    for each, task in zip(axes, table.tasks, strict=True):
        assert "one seed" in each.get_title() and "fbank_no_cmvn" in each.get_title()
        baseline = [line for line in each.get_lines() if line.get_linestyle() == ":"]
        assert len(baseline) == 1
        assert all(len(line.get_xdata()) == 1 for line in each.get_lines() if line not in baseline), task
        assert [label.get_text().replace("\n", "") for label in each.get_yticklabels()] == [
            "tiny_mini",
            "tiny_mini_w1a1",
        ]


def test_the_spread_over_seeds_is_drawn(tmp_path: Path) -> None:
    folders = [write_runs(tmp_path / f"runs{seed}", seed, shift=0.02 * seed) for seed in (1, 2)]
    table = collect(folders)
    figure, scores = error_by_bits(table, "pr"), score_against_cost(table, dict.fromkeys(UPSTREAMS, 1.0), "cost")
    assert figure is not None and scores is not None
    for each in (figure, scores):
        assert "standard deviation over 2 seeds" in each.axes[0].get_title()
        bars = [c.get_segments()[0] for c in each.axes[0].collections]
        assert bars and any((segment[0] != segment[1]).any() for segment in bars)


def test_layer_weights_of_all_upstreams_have_one_colour_scale(tmp_path: Path) -> None:
    for label, weights in (("flat", [0.0, 0.0]), ("steep", [0.0, 5.0])):
        write_cell(tmp_path, label, "ks", 1, 0.5)
        state = tmp_path / f"cells/{label}/ks/seed1/expdir/dev-best.ckpt"
        state.parent.mkdir()
        torch.save({"Featurizer": {"weights": torch.tensor(weights)}}, state)
    section = all_figures(collect([tmp_path]), {})["Layer weights of the tasks"]
    limits = [figure.axes[0].images[0].get_clim() for figure in section.values()]
    assert limits == [(0.0, pytest.approx(torch.tensor([0.0, 5.0]).softmax(0).max().item()))] * 2


def test_figures_are_readable_on_a_telephone_and_name_their_points_directly(tmp_path: Path) -> None:
    figures = all_in(collect([write_runs(tmp_path / "runs", seed=1)]))
    assert len(figures) == 5
    for figure in figures:
        assert figure.get_size_inches()[0] == WIDTH < 5
        assert not figure.legends and all(axes.get_legend() is None for axes in figure.axes)
        texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= SMALLEST
    labels = {text.get_text().replace("\n", "") for text in figures[0].findobj(Annotation)}
    assert labels == set(UPSTREAMS)


def test_labels_keep_apart_and_inside_the_axes(tmp_path: Path) -> None:
    for number in range(14):
        write_cell(tmp_path, f"upstream_number_{number}_with_a_long_name", "ks", 1, 0.5 + number / 1e4)
    figure = score_against_cost(
        collect([tmp_path]), {f"upstream_number_{n}_with_a_long_name": 1.0 for n in range(14)}, "c"
    )
    assert figure is not None
    figure.draw_without_rendering()
    # Of the text alone: an annotation's own extent includes its line.
    boxes = sorted((Text.get_window_extent(text) for text in figure.findobj(Annotation)), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert boxes[0].y0 > 0 and boxes[-1].y1 < figure.bbox.y1 and max(box.x1 for box in boxes) <= figure.bbox.x1 + 1
