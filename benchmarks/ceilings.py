"""Ceilings of the embedded benchmark: a small supervised network on the corpora of `make superb`, for each task.

    python -m benchmarks.ceilings --corpora data/mini --out runs/ceilings [--seed 0] [ks ic ...]

The network (benchmarks.ceiling_network) is trained from random weights with the labels of one task, through s3prl's
datasets, losses and metrics, with the head of superb_mini. The checkpoint that is best on dev is tested. What it
reaches, frozen features could reach: a task on which it fails cannot tell features apart. Finished tasks are skipped.
OUT/ceilings.csv has a line for each task and seed.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ceiling_network import NAME
from runners.downstream import run as downstream
from runners.downstream.states import latest_state
from runners.matrix.file import read_matrix
from runners.tasks import SEVEN, TASKS, task_config

# Steps, learning rate: one to five minutes of one core each.
_TRAINING = {
    "asr": (1200, 3e-3),
    "sf": (1500, 3e-3),
    "pr": (500, 3e-3),
    "ks": (800, 3e-3),
    "ic": (700, 3e-3),
    "sid": (400, 3e-3),
    "er": (400, 3e-3),
}
_EVALUATIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=f"names of tasks (default: {' '.join(SEVEN)})")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the embedded corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings and results")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps, instead of the task's")
    options = parser.parse_args()
    for task in options.tasks or SEVEN:
        result = ceiling(task, corpora=options.corpora, out=options.out, seed=options.seed, steps=options.steps)
        print(result, flush=True)
    print(collect(options.out))


def ceiling(task: str, *, corpora: Path, out: Path, seed: int, steps: int | None = None) -> dict[str, Any]:
    """Train and test on one task, unless OUT/<task>/seed<seed>/result.yaml exists; return its content.

    `score` is in per cent. seconds: CPU time of training and test.
    """
    folder = out / task / f"seed{seed}"
    result = folder / "result.yaml"
    if result.exists():
        return dict(yaml.safe_load(result.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    config, expdir = folder / "config.yaml", folder / "expdir"
    config.write_text(yaml.safe_dump(_config(task, corpora, steps), sort_keys=False), encoding="utf-8")
    started = time.process_time()
    resume = ["-a"] if latest_state(expdir) else []
    downstream.main(
        [
            *("-m", "train", "-u", NAME, "--upstream-module", "benchmarks.ceiling_network", "-f", *resume),
            *("-d", TASKS[task].downstream, "-c", str(config), "-p", str(expdir)),
            *("--seed", str(seed), "--device", "cpu"),
        ]
    )
    best = expdir / TASKS[task].best
    checkpoint = best if best.is_file() else latest_state(expdir)
    metrics = downstream.main(
        ["-m", "evaluate", "-t", TASKS[task].eval_split, "-e", str(checkpoint), "--device", "cpu"]
    )
    assert metrics is not None
    found = {
        "task": task,
        "seed": seed,
        "metric": TASKS[task].metric,
        "score": round(TASKS[task].in_percent(metrics[TASKS[task].metric]), 2),
        "steps": _config(task, corpora, steps)["runner"]["total_steps"],
        "seconds": round(time.process_time() - started, 1),
    }
    partial = result.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    partial.rename(result)
    return found


def _config(task: str, corpora: Path, steps: int | None) -> dict[str, Any]:
    """Return superb_mini's configuration of the task with the settings of a network that is trained from the start."""
    config = task_config(task, corpora.absolute(), read_matrix("superb_mini").tasks[task])
    total, rate = _TRAINING[task]
    total = steps or total
    each = max(1, total // _EVALUATIONS)
    config["runner"] |= {"total_steps": total, "eval_step": each, "save_step": each, "log_step": each}
    config["optimizer"]["lr"] = rate
    config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": max(1, total // 20)}
    return config


def collect(out: Path) -> Path:
    """Write OUT/ceilings.csv from the results below `out`; return its path."""
    rows = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/seed*/result.yaml"))]
    path = out / "ceilings.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


if __name__ == "__main__":
    main()
