"""The report's TensorBoard files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from runners.report.table import Table


def write_tensorboard(table: Table, markdown: str, figures: Mapping[str, Figure], folder: Path) -> None:
    """Write the results as HParams (a session for each upstream and seed), the table as text, the figures as images.

    The training curves are not copied: s3prl writes them into each cell's expdir, and TensorBoard shows both when it is
    started on the run folder.
    """
    shutil.rmtree(folder, ignore_errors=True)  # TensorBoard would also show the events of an earlier report
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("table", markdown)
        for title, figure in figures.items():
            writer.add_image(title.replace(" ", "_"), _pixels(figure), dataformats="HWC")
    for upstream in table.upstreams:
        results = table.of_upstream(upstream)
        for seed in sorted({result["seed"] for result in results}):
            of_seed = [result for result in results if result["seed"] == seed]
            _write_session(folder / "hparams" / upstream / f"seed{seed}", upstream, seed, of_seed)


def _pixels(figure: Figure) -> np.ndarray:
    """Return the figure as (height, width, 3) bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _write_session(folder: Path, upstream: str, seed: int, results: list[dict[str, Any]]) -> None:
    parameters: dict[str, Any] = {"upstream": upstream, "seed": seed}
    costs = {key: results[0][key] for key in ("parameters", "macs", "storage_bytes")}
    parameters |= {key: cost for key, cost in costs.items() if cost is not None}
    metrics = {
        f"final_percent/{result['task']}_{result['metric']}": float(result["value_percent"]) for result in results
    }
    with SummaryWriter(str(folder)) as writer:
        # SummaryWriter.add_hparams would put the metrics into a folder named after the current time.
        for summary in hparams(parameters, metrics):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value)
