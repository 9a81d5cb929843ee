"""Run folders with results.json files as `superbit evaluate` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runners.tasks import FOLDS, TASKS

UPSTREAMS = ["fbank_no_cmvn", "tiny_mini_untrained", "tiny_mini", "tiny_mini_w1a1"]
REAL = {"corpus": {"speech": "real", "label": "as published"}, "deviations": []}


def five_folds(value: float) -> dict[str, Any]:
    """Return the entries of emotion recognition's results over all folds; value: in percent, of every fold."""
    origin = {"checkpoint_sha256": "5ba1" * 16, "versions": {}, "machine": "x86_64", "device": "cpu", "deviations": []}
    origin |= {"tested": "dev-best.ckpt", "expdir": "expdir"}
    folds = {fold: {"value_percent": value, **origin} for fold in FOLDS}
    return {"folds": folds, "fold_deviation_percent": 0.0}


def write_cell(runs: Path, label: str, task: str, seed: int, value: float, **changes: Any) -> None:
    """Write the results.json of one cell; value: in s3prl's units; changes: keys that differ from a plain result."""
    content = {
        "upstream": label,
        "task": task,
        "metric": TASKS[task].metric,
        "value_percent": TASKS[task].in_percent(value),
        "higher_is_better": TASKS[task].higher_is_better,
        "s3prl_metrics": {TASKS[task].metric: value},
        "tested": TASKS[task].best,
        "expdir": "expdir",
        "best_on_dev": True,
        "command": f"superbit downstream -m evaluate -e {label}/{task}/{seed}",
        "train_command": "superbit downstream -m train",
        "seed": seed,
        "parameters": 0 if label == "fbank_no_cmvn" else 1_700_000,
        "macs": 480_000_000,
        "storage_bytes": 0 if label == "fbank_no_cmvn" else 6_800_000,
        "corpus": {"speech": "real", "label": "as spoken"},
        "deviations": ["embedded corpus (real, as spoken)"],
        "checkpoint_sha256": None if label.startswith("fbank") else "5ba1" * 16,
        "device": "cpu",
        "machine": "x86_64, Some Processor, 2 cores",
        "versions": {"superbit": "0.1.0", "torch": "2.13.0", "commit": "c0ffee" * 6},
        "seconds": {"train": 10.25, "evaluate": 1.5},
        "resumed_at_step": None,
        "identity": {"config": {"optimizer": {"lr": 0.001}}, "corpus_sha256": "c0"},
    }
    path = runs / "cells" / label / task / f"seed{seed}" / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))


def write_runs(runs: Path, seed: int, shift: float = 0.0) -> Path:
    """Write three tasks of four upstreams: WER in percent, as s3prl gives it; PER and accuracy as fractions."""
    values = {"asr": [99.0, 98.0, 90.0, 95.0], "pr": [0.90, 0.80, 0.70, 0.75], "er": [0.30, 0.50, 0.60, 0.55]}
    for task, row in values.items():
        for label, value in zip(UPSTREAMS, row, strict=True):
            made_up = {"corpus": {"speech": "synthetic", "label": "synthetic: made up"}} if task == "er" else {}
            write_cell(runs, label, task, seed, value + (100 if task == "asr" else 1) * shift, **made_up)
    (runs / "matrix.json").write_text(json.dumps({"upstreams": UPSTREAMS, "tasks": list(values), "seeds": [seed]}))
    return runs
