"""Query-by-example, which trains nothing: the hidden state that is best on dev is tested (SUPERB, 2021)."""

from __future__ import annotations

import time
from typing import Any

from runners.corpora.check import checked_corpora
from runners.matrix import locks
from runners.matrix.cell import Fold, finished
from runners.matrix.results import command, describe
from runners.matrix.stale import settle_training
from runners.matrix.training import check_unchanged, modules, write_started
from runners.tasks import TASKS
from upstreams.files import read_json, write_json


def choose_and_test(fold: Fold) -> None:
    """Score every hidden state on dev, test the best, of equal ones the lowest, and write results.json.

    After an interruption, resumes with the first hidden state without a dev score. Raises UserError if there is no
    number to report, and if the upstream's checkpoint or the code has changed since the plan was made.
    """
    check_unchanged(fold.cell)
    with locks.hold(fold.folder):
        if finished(fold) is not None:
            return
        settle_training(fold.trainings[0], fold.identity)
        write_started(fold.trainings[0])
        started, metric = time.monotonic(), TASKS[fold.cell.task].metric
        scores = [_metrics(fold, "dev", layer)[metric] for layer in range(_hidden_states(fold))]
        best = scores.index(max(scores))
        chosen = time.monotonic()
        check_unchanged(fold.cell)
        metrics = _metrics(fold, "test", best)
        tested_in = time.monotonic() - chosen
        percents = [TASKS[fold.cell.task].in_percent(score) for score in scores]
        write_json(
            fold.results_file,
            describe(fold, metrics)
            | {
                "tested": f"layer {best}",
                "expdir": f"test{best}",
                "best_on_dev": True,
                "layer": best,
                "dev_percent": percents[best],
                "layers_percent": percents,
                "command": command(arguments(fold, "test", best)),
                "train_command": command(arguments(fold, "dev", best)),
                "seconds": {"train": round(chosen - started, 2), "evaluate": round(tested_in, 2)},
                "resumed_at_step": None,
            },
        )


def _metrics(fold: Fold, split: str, layer: int) -> dict[str, float]:
    """Return the metrics of a hidden state on a split: cached from an interrupted run, or measured."""
    from runners.downstream import run as downstream

    file = fold.folder / f"{split}{layer}.json"
    cached = read_json(file)
    if cached and cached["identity"] == fold.identity:
        return dict(cached["metrics"])
    with checked_corpora():
        metrics = downstream.main(arguments(fold, split, layer)) or {}
    write_json(file, {"metrics": metrics, "identity": fold.identity})
    return metrics


def arguments(fold: Fold, split: str, layer: int) -> list[str]:
    """Return the flags of `superbit downstream` that score a hidden state on a split."""
    cell = fold.cell
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    return [
        *("-m", "evaluate", "-t", split, "-u", cell.upstream, *checkpoint, *modules(cell), "-l", str(layer)),
        *("-d", TASKS[cell.task].downstream, "-c", str(fold.folder / "config.yaml")),
        *("-p", str(fold.folder / f"{split}{layer}"), "--seed", str(cell.seed), "--device", cell.device),
    ]


def _hidden_states(fold: Fold) -> int:
    """Return the number of hidden states of the upstream."""
    import torch
    from s3prl import hub

    from upstreams.s3prl.names import import_modules

    cell = fold.cell
    import_modules(cell.upstream_modules)
    options: dict[str, Any] = {"ckpt": str(cell.checkpoint)} if cell.checkpoint else {}
    upstream = getattr(hub, cell.upstream)(**options).to(cell.device).eval()
    with torch.no_grad():
        return len(upstream([torch.zeros(16000, device=cell.device)])["hidden_states"])
