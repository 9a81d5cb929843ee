"""One cell of the table: train one task's head on one frozen upstream, test it, write results.json."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from runners.tasks import TASKS, Task
from upstreams.checkpoint import sha256
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.versions import versions


@dataclass(frozen=True)
class Cell:
    """What decides a cell's number, and where it is kept."""

    label: str  # the row
    upstream: str  # the name in s3prl.hub
    checkpoint: Path | None  # the weights' file, None for upstreams without one
    task: str
    seed: int
    config: dict[str, Any]  # s3prl's, resolved
    corpora: Path
    device: str
    store_bytes: int  # of the feature store
    folder: Path
    identity: dict[str, Any]  # a cell whose results carry the same is done; JSON values only

    @property
    def name(self) -> str:
        """How a person calls the cell."""
        return f"{self.label}/{self.task} seed {self.seed}"

    @property
    def log_file(self) -> Path:
        """What s3prl prints, and the traceback of a failure."""
        return self.folder / "log.txt"

    @property
    def results_file(self) -> Path:
        """There, and of the cell's identity, exactly when the cell is done."""
        return self.folder / "results.json"

    @property
    def expdir(self) -> Path:
        """s3prl's folder of the experiment."""
        return self.folder / "expdir"


def identify(
    upstream: str, checkpoint: Path | None, task: str, seed: int, config: dict[str, Any], corpora: Path
) -> dict[str, Any]:
    """What a cell's number depends on, so that results made from anything else are not taken for it."""
    corpus = corpora / "corpus.json"
    return {
        "upstream": upstream,
        "checkpoint_sha256": sha256(checkpoint) if checkpoint else None,
        "task": task,
        "seed": seed,
        "config": json.loads(json.dumps(config)),
        "corpus_sha256": sha256(corpus) if corpus.exists() else None,
        "superbit": versions()["superbit"],
    }


def finished(cell: Cell) -> dict[str, Any] | None:
    """The results of a cell that is done; None when it has none, or those of another configuration or checkpoint."""
    results = read_json(cell.results_file)
    return results if results and results.get("identity") == cell.identity else None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train, test and write results.json; return its content.

    Goes on from s3prl's own states where the same cell was interrupted. Training uses a feature store; the
    value is measured by `-m evaluate` without one, on the checkpoint that was best on dev, exactly as a user
    can. Raises UserError when there is no number to report.
    """
    with _alone_in(cell.folder):
        if (results := finished(cell)) is not None:
            return results  # by another runner, while this one waited
        resumed_at = _prepare(cell)
        started = time.monotonic()
        _train(cell, resumed=resumed_at is not None)
        trained = time.monotonic()
        checkpoint = _checkpoint_to_test(cell)
        metrics = _test(cell, checkpoint)
        ended = time.monotonic()
        results = _results(cell, checkpoint, metrics) | {
            "seconds": {"train": round(trained - started, 2), "evaluate": round(ended - trained, 2)},
            "resumed_at_step": resumed_at,
        }
        with atomic_write(cell.results_file) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return results


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of however the process ends; wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(cell: Cell) -> int | None:
    """Make the folder ready; return the step at which training goes on, None when it starts anew."""
    started_file = cell.folder / "cell.json"
    steps = [int(path.stem.removeprefix("states-")) for path in cell.expdir.glob("states-*.ckpt")]
    if steps and read_json(started_file) == cell.identity:
        return max(steps)
    # What lies here is of another configuration, or ended before it saved anything.
    cell.results_file.unlink(missing_ok=True)
    started_file.unlink(missing_ok=True)
    shutil.rmtree(cell.expdir, ignore_errors=True)
    cell.expdir.mkdir()
    with atomic_write(cell.folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(cell.config, sort_keys=False), encoding="utf-8")
    with atomic_write(started_file) as temporary:
        temporary.write_text(json.dumps(cell.identity, indent=1) + "\n", encoding="utf-8")
    return None


def _train_arguments(cell: Cell) -> list[str]:
    # Always by its path, so that the command needs no environment to find it.
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    task: Task = TASKS[cell.task]
    return [
        *("-m", "train", "-u", cell.upstream, *checkpoint, "-d", task.downstream),
        *("-c", str(cell.folder / "config.yaml"), "-p", str(cell.expdir)),
        *("--seed", str(cell.seed), "--device", cell.device),
    ]


def _test_arguments(cell: Cell, checkpoint: Path) -> list[str]:
    split = TASKS[cell.task].eval_split
    return ["-m", "evaluate", "-t", split, "-e", str(checkpoint), "--device", cell.device]


def _command(arguments: list[str]) -> str:
    return shlex.join(["superbit", "downstream", *arguments])


def _train(cell: Cell, resumed: bool) -> None:
    from runners import downstream
    from runners.feature_store import FeatureStore, waveforms_kept

    arguments = _train_arguments(cell)
    if resumed:
        arguments = ["-m", "train", "-e", str(cell.expdir), "--device", cell.device]
    wrap = (lambda upstream: FeatureStore(upstream, cell.store_bytes)) if cell.store_bytes else None
    with waveforms_kept(cell.store_bytes // 4):
        downstream.main(arguments, wrap_upstream=wrap)


def _checkpoint_to_test(cell: Cell) -> Path:
    """The best on dev; the last states where s3prl found nothing that it calls an improvement (ASR at WER 100)."""
    best = cell.expdir / TASKS[cell.task].best
    if best.exists():
        return best
    states = {int(path.stem.removeprefix("states-")): path for path in cell.expdir.glob("states-*.ckpt")}
    if not states:
        raise UserError(
            f"training of {cell.name} left neither {best.name} nor states-*.ckpt:"
            " runner.eval_step and runner.save_step must not exceed runner.total_steps"
        )
    return states[max(states)]


def _test(cell: Cell, checkpoint: Path) -> dict[str, float]:
    from runners import downstream

    metrics = downstream.main(_test_arguments(cell, checkpoint))
    wanted = TASKS[cell.task].metric
    if not metrics or wanted not in metrics:
        raise UserError(f"the test of {cell.name} gave no {wanted}: is its test set empty?")
    if not math.isfinite(metrics[wanted]):
        raise UserError(f"the test of {cell.name} gave {wanted} = {metrics[wanted]}, which is no result")
    return metrics


def _results(cell: Cell, checkpoint: Path, metrics: dict[str, float]) -> dict[str, Any]:
    task: Task = TASKS[cell.task]
    return {
        "upstream": cell.label,
        "name": cell.upstream,
        "task": cell.task,
        "metric": task.metric,
        "value": metrics[task.metric],
        "higher_is_better": task.higher_is_better,
        "metrics": metrics,
        "tested": checkpoint.name,
        "best_on_dev": checkpoint.name == task.best,
        "command": _command(_test_arguments(cell, checkpoint)),
        "train_command": _command(_train_arguments(cell)),
        "seed": cell.seed,
        **_costs(cell),
        "checkpoint": str(cell.checkpoint) if cell.checkpoint else None,
        "corpus": _corpus(cell),
        "device": cell.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),  # with the git commit
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "identity": cell.identity,
    }


def _costs(cell: Cell) -> dict[str, int | None]:
    """Parameters, MACs and storage; None of upstreams that are not this project's and not s3prl's baselines."""
    from upstreams import registry

    if cell.upstream in (*registry.names(), "fbank", "fbank_no_cmvn"):
        costs = registry.describe(cell.upstream, cell.checkpoint)
        return {key: costs[key] for key in ("parameters", "macs", "storage_bytes")}
    return dict.fromkeys(("parameters", "macs", "storage_bytes"))


def _corpus(cell: Cell) -> dict[str, str]:
    """`speech` and `label` as corpus.json describes the task; corpora without that file are the real ones."""
    tasks = (read_json(cell.corpora / "corpus.json") or {}).get("tasks", {})
    described = tasks.get(cell.task, {"speech": "real", "label": "as published"})
    return {key: described[key] for key in ("speech", "label")}


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object; None where the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
