"""The report's image and its TensorBoard files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upstreams.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runners.report.write import Table


def write_plot(table: Table, path: Path) -> None:
    """Mean score (as `Table.score` has it) against storage, one point an upstream."""
    figure = _figure(table)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def write_tensorboard(
    table: Table, markdown: str, image: Path, figures: Mapping[str, Figure | None], folder: Path
) -> None:
    """Final metrics as HParams (one session an upstream and seed), the table as text, plot and figures as images.

    The training curves need no copy: s3prl writes them into each cell's expdir, so TensorBoard shows them
    beside these when it is started on the runs' folder.
    """
    import matplotlib.image
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)  # events of an earlier report would be shown as well
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("table", markdown)
        writer.add_image("score_against_storage", matplotlib.image.imread(image)[..., :3], dataformats="HWC")
        for name, figure in figures.items():
            if figure is not None:
                writer.add_image(name, _pixels(figure), dataformats="HWC")
    for upstream in table.upstreams:
        for seed in sorted({result["seed"] for result in table.results if result["upstream"] == upstream}):
            results = [r for r in table.results if (r["upstream"], r["seed"]) == (upstream, seed)]
            _write_session(folder / "hparams" / upstream / f"seed{seed}", upstream, seed, results)


def _pixels(figure: Figure) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _write_session(folder: Path, upstream: str, seed: int, results: list[dict[str, Any]]) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    parameters: dict[str, Any] = {"upstream": upstream, "seed": seed}
    costs = {key: results[0][key] for key in ("parameters", "macs", "storage_bytes")}
    parameters |= {key: cost for key, cost in costs.items() if cost is not None}
    metrics = {f"final/{result['task']}_{result['metric']}": float(result["value"]) for result in results}
    with SummaryWriter(str(folder)) as writer:
        # SummaryWriter.add_hparams would put the metrics into a folder named after the time.
        for summary in hparams(parameters, metrics):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value)


def _figure(table: Table) -> Figure:
    # Figure alone, without pyplot, needs no display and keeps no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    scores = {upstream: table.score(upstream) for upstream in table.upstreams}
    known = [(score, upstream) for upstream, score in scores.items() if score is not None]
    for number, (score, upstream) in enumerate(sorted(known, reverse=True)):
        if (storage := table.cost(upstream, "storage_bytes")) is not None:
            # Ten colours, then the same with other marks.
            axes.plot(storage / 1000, score, "osD^v"[number // 10 % 5], label=upstream)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize=8, title="best first", title_fontsize=8)
    # Upstreams without weights have storage 0, which a plain logarithmic axis cannot show.
    axes.set_xscale("symlog", linthresh=10)
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel("storage of the upstream's weights (kB)")
    axes.set_ylabel(f"mean of {len(table.tasks)} tasks (%)")
    left_out = len(scores) - len(axes.lines)
    remark = f"\nnot shown, for want of a task or of known storage: {left_out} upstreams" if left_out else ""
    axes.set_title(
        f"Mean score: accuracy and F1 as they are, error rates as 100 - rate, at least 0{remark}", fontsize=9
    )
    axes.grid(alpha=0.3)
    return figure
