"""A cell of query-by-example: nothing is trained; the hidden state that is best on dev is tested (SUPERB, 2021)."""

from __future__ import annotations

import time
from typing import Any

import yaml

from runners.matrix import cell as cells
from runners.matrix.cell import Cell
from runners.tasks import TASKS
from upstreams.files import atomic_write, read_json, write_json


def run_cell(cell: Cell) -> None:
    """Match every hidden state on dev, test the best, of equal ones the lowest, and write results.json.

    Goes on behind the last hidden state that an interrupted run has matched. Raises UserError when there is no number.
    """
    with cells.alone_in(cell.folder):
        if cells.finished(cell) is not None:
            return
        with atomic_write(cell.folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(cell.config, sort_keys=False), encoding="utf-8")
        started, metric = time.monotonic(), TASKS[cell.task].metric
        values = [_value(cell, "dev", layer)[metric] for layer in range(_hidden_states(cell))]
        best = values.index(max(values))
        chosen = time.monotonic()
        metrics = _value(cell, "test", best)
        write_json(
            cell.results_file,
            cells.origin(cell, metrics)
            | {
                "tested": f"layer {best}",
                "best_on_dev": True,
                "layer": best,
                "dev": values[best],
                "layers": values,
                "command": cells.command(_arguments(cell, "test", best)),
                "train_command": cells.command(_arguments(cell, "dev", best)),
                "seconds": {"train": round(chosen - started, 2), "evaluate": round(time.monotonic() - chosen, 2)},
                "resumed_at_step": None,
            },
        )


def _value(cell: Cell, split: str, layer: int) -> dict[str, float]:
    """The metrics of a hidden state on a split, as an earlier run of the same cell has left them, or measured."""
    from runners.downstream import run as downstream

    file = cell.folder / f"{split}{layer}.json"
    before = read_json(file)
    if before and before["identity"] == cell.identity:
        return dict(before["metrics"])
    metrics = downstream.main(_arguments(cell, split, layer)) or {}
    write_json(file, {"metrics": metrics, "identity": cell.identity})
    return metrics


def _arguments(cell: Cell, split: str, layer: int) -> list[str]:
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    return [
        *("-m", "evaluate", "-t", split, "-u", cell.upstream, *checkpoint, "-l", str(layer)),
        *("-d", TASKS[cell.task].downstream, "-c", str(cell.folder / "config.yaml")),
        *("-p", str(cell.folder / f"{split}{layer}"), "--seed", str(cell.seed), "--device", cell.device),
    ]


def _hidden_states(cell: Cell) -> int:
    """How many the upstream has."""
    import torch
    from s3prl import hub

    options: dict[str, Any] = {"ckpt": str(cell.checkpoint)} if cell.checkpoint else {}
    upstream = getattr(hub, cell.upstream)(**options).to(cell.device).eval()
    with torch.no_grad():
        return len(upstream([torch.zeros(16000, device=cell.device)])["hidden_states"])
