"""What `superbit probe` shows and writes: a table for each task, probe.csv, and probe.png by layer."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

# Figure alone, without pyplot, needs no display and keeps no global state.
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from runners.analysis.probe.features import MEAN
from runners.analysis.probe.items import TITLES
from runners.analysis.probe.run import LOG_MEL, Result
from upstreams.files import atomic_write


def show(results: Sequence[Result]) -> None:
    """Print a table for each task: checkpoints by layers, accuracy on dev in %, the best layer of a row in bold."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe
    for task in _tasks(results):
        scores = _by_checkpoint(results, task)
        table = Table()
        table.add_column("checkpoint", no_wrap=True)
        layers = [*map(str, range(_deepest(results) + 1)), MEAN]
        for layer in layers:
            table.add_column("mean of layers" if layer == MEAN else layer, justify="right")
        for name, of_layer in scores.items():
            if name != LOG_MEL:
                best = max(of_layer.values())
                cells = [of_layer.get(layer) for layer in layers]
                table.add_row(
                    name, *("" if c is None else f"[bold]{c:.1f}[/]" if c == best else f"{c:.1f}" for c in cells)
                )
        console.print(_title(results, task), highlight=False)
        console.print(table)


def write(results: Sequence[Result], out: Path) -> None:
    """Write OUT/probe.csv, a line for each checkpoint, task and layer, and OUT/probe.png, a panel for each task."""
    with atomic_write(out / "probe.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Result)])
        writer.writerows(dataclasses.astuple(result) for result in results)
    with atomic_write(out / "probe.png") as temporary:
        draw(results).savefig(temporary, format="png", dpi=120)


def draw(results: Sequence[Result]) -> Figure:
    """Draw accuracy by layer, a line for each checkpoint, beside log-mel and the accuracy of a constant answer."""
    tasks = _tasks(results)
    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        scores = _by_checkpoint(results, task)
        deepest = _deepest(results)
        for name, of_layer in scores.items():
            if name == LOG_MEL:
                axes.axhline(of_layer[LOG_MEL], color="grey", linestyle="--", label=LOG_MEL)
                continue
            layers = [int(layer) for layer in of_layer if layer.isdecimal()]
            (line,) = axes.plot(layers, [of_layer[str(layer)] for layer in layers], "o-", markersize=4, label=name)
            axes.plot([deepest + 1], [of_layer[MEAN]], "D", color=line.get_color(), markersize=6)
        first = next(r for r in results if r.task == task)
        axes.axhline(100 * first.constant, color="black", linestyle=":", label="constant answer")
        axes.set_xticks(range(deepest + 2), [*map(str, range(deepest + 1)), "mean"])
        axes.set_title(f"{task.upper()}: {TITLES[task]}, {_count(first)} dev items", fontsize=9)
        axes.set_xlabel("layer (0: input of the encoder)", fontsize=9)
        axes.set_ylabel("accuracy (%)", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7)
    return figure


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))


def _by_checkpoint(results: Sequence[Result], task: str) -> dict[str, dict[str, float]]:
    """Return checkpoint -> layer -> accuracy in %."""
    found: dict[str, dict[str, float]] = {}
    for result in results:
        if result.task == task:
            found.setdefault(result.checkpoint, {})[result.layer] = 100 * result.accuracy
    return found


def _deepest(results: Sequence[Result]) -> int:
    return max(int(result.layer) for result in results if result.layer.isdecimal())


def _title(results: Sequence[Result], task: str) -> str:
    first = next(result for result in results if result.task == task)
    pooling = "frames" if first.pooling == "frame" else f"{first.pooling} over time"
    log_mel = _by_checkpoint(results, task)[LOG_MEL][LOG_MEL]
    return (
        f"{task.upper()}, {TITLES[task]}: accuracy in % on {_count(first)} dev items ({first.train_items} of train, "
        f"{pooling}); log-mel {log_mel:.1f}, constant answer {100 * first.constant:.1f}"
    )


def _count(result: Result) -> str:
    """Return the number of dev items, and the largest standard deviation that it gives an accuracy, in %."""
    return f"{result.dev_items} (±{50 / result.dev_items**0.5:.1f})"
