"""One cell of the table: train one task's head on one frozen upstream, test it, write results.json.

Where learning rates are tried, each is a training of its own; the last of them to end chooses the one that is best on
dev and tests that one only.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from runners.features.settings import StoreSettings
from runners.matrix.heartbeat import Heartbeat
from runners.tasks import TASKS, Task
from upstreams.errors import UserError
from upstreams.files import atomic_write, read_json, sha256, write_json
from upstreams.versions import versions


@dataclass(frozen=True)
class Cell:
    """One training: what decides a cell's number, and where it is kept."""

    label: str  # the row
    upstream: str  # the name in s3prl.hub
    checkpoint: Path | None  # the weights' file, None for upstreams without one
    task: str
    seed: int
    config: dict[str, Any]  # s3prl's, resolved, with this training's learning rate
    learning_rates: tuple[float, ...]  # that the cell tries, this training's among them; empty where none are tried
    corpora: Path
    device: str
    store: StoreSettings | None
    folder: Path  # the cell's, shared by the trainings that its learning rates make
    identity: dict[str, Any]  # a cell whose results carry the same is done; JSON values only
    folds: tuple[str, ...] = ()  # whose mean is the task's result, this cell's among them; empty where it is alone

    @property
    def learning_rate(self) -> float:
        """Of this training."""
        return float(self.config["optimizer"]["lr"])

    @property
    def name(self) -> str:
        """How a person calls the training."""
        fold = f" {self.folder.name}" if self.folds else ""
        tried = f" lr {self.learning_rate:g}" if self.learning_rates else ""
        return f"{self.label}/{self.task} seed {self.seed}{fold}{tried}"

    @property
    def training_folder(self) -> Path:
        """Of this training: the cell's own where no learning rates are tried."""
        return self.folder / f"lr{self.learning_rate:g}" if self.learning_rates else self.folder

    @property
    def training_identity(self) -> dict[str, Any]:
        """What this training depends on: not on which other learning rates are tried."""
        rest = {key: value for key, value in self.identity.items() if key != "learning_rates"}
        return rest | {"config": json.loads(json.dumps(self.config))}

    @property
    def log_file(self) -> Path:
        """What s3prl prints, and the traceback of a failure."""
        return self.training_folder / "log.txt"

    @property
    def results_file(self) -> Path:
        """There, and of the cell's identity, exactly when the cell is done."""
        return self.folder / "results.json"

    @property
    def trained_file(self) -> Path:
        """There, and of the training's identity, exactly when the training is done; the test has not begun then."""
        return self.training_folder / "trained.json"

    @property
    def progress_file(self) -> Path:
        """Where a training says how far it is, every second or two."""
        return self.training_folder / "progress.json"

    @property
    def expdir(self) -> Path:
        """s3prl's folder of the experiment."""
        return self.training_folder / "expdir"

    def siblings(self) -> list[Cell]:
        """The trainings of this cell, one for each learning rate that it tries; itself where it tries none."""
        if not self.learning_rates:
            return [self]
        return [with_learning_rate(self, learning_rate) for learning_rate in self.learning_rates]


def with_learning_rate(cell: Cell, learning_rate: float) -> Cell:
    """The training of a cell at that learning rate."""
    config = cell.config | {"optimizer": cell.config["optimizer"] | {"lr": learning_rate}}
    return dataclasses.replace(cell, config=config)


def identify(
    upstream: str,
    checkpoint: Path | None,
    task: str,
    seed: int,
    config: dict[str, Any],
    corpora: Path,
    learning_rates: tuple[float, ...] = (),
    store: StoreSettings | None = None,
) -> dict[str, Any]:
    """What a cell's number depends on, so that results made from anything else are not taken for it."""
    corpus = corpora / "corpus.json"
    identity = {
        "upstream": upstream,
        "checkpoint_sha256": sha256(checkpoint) if checkpoint else None,
        "task": task,
        "seed": seed,
        "config": json.loads(json.dumps(config)),
        "corpus_sha256": sha256(corpus) if corpus.exists() else None,
        "superbit": versions()["superbit"],
    }
    if learning_rates:
        identity["learning_rates"] = list(learning_rates)
    # fp16 and fp32 give the number that features without a store give, within its noise.
    if store is not None and store.dtype == "int8":
        identity["features"] = store.dtype
    return identity


def finished(cell: Cell) -> dict[str, Any] | None:
    """The results of a cell that is done; None when it has none, or those of another configuration or checkpoint."""
    results = read_json(cell.results_file)
    return results if results and results.get("identity") == cell.identity else None


def trained(cell: Cell) -> dict[str, Any] | None:
    """What a training that is done has written; None when it is not."""
    content = read_json(cell.trained_file)
    if not content or content.get("identity") != cell.training_identity:
        return None
    return content if (cell.expdir / content["tested"]).exists() else None


def is_locked(cell: Cell) -> bool:
    """Whether some process, of this runner or another, is at work on the training."""
    try:
        with (cell.training_folder / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def run_cell(cell: Cell) -> None:
    """Train, test and write results.json; where learning rates are tried, only the last to be trained tests.

    Goes on from s3prl's own states where the same training was interrupted. Training uses the feature store; the
    value is measured by `-m evaluate` without one, on the checkpoint that was best on dev, exactly as a user can.
    Raises UserError when there is no number to report.
    """
    with alone_in(cell.training_folder):
        if finished(cell) is not None:
            return  # by another runner, while this one waited
        if trained(cell) is None:
            _train_and_record(cell)
        if not cell.learning_rates:
            _conclude(cell)
            return
    with alone_in(cell.folder):
        if finished(cell) is None and all(trained(sibling) is not None for sibling in cell.siblings()):
            _conclude(cell)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of however the process ends; wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train_and_record(cell: Cell) -> None:
    resumed_at = _prepare(cell)
    progress = Heartbeat(cell.progress_file, resumed_at or 0, cell.config["runner"]["total_steps"])
    started = time.monotonic()
    try:
        _train(cell, resumed_at is not None, progress)
    finally:
        cell.progress_file.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    checkpoint = _checkpoint_to_test(cell)
    write_json(
        cell.trained_file,
        {
            "learning_rate": cell.learning_rate,
            "dev": _dev_value(cell, checkpoint),
            "tested": checkpoint.name,
            "seconds": round(seconds, 2),
            "resumed_at_step": resumed_at,
            "step_seconds": round(seconds / max(1, progress.total - progress.first), 5),
            "peak_memory_bytes": progress.peak_memory,
            "train_command": command(_train_arguments(cell)),
            "identity": cell.training_identity,
        },
    )


def _conclude(cell: Cell) -> None:
    """Test the training that is best on dev, of equal ones the first, and write the cell's results."""
    trainings = [(sibling, trained(sibling) or {}) for sibling in cell.siblings()]
    task = TASKS[cell.task]
    sign = 1 if task.higher_is_better or task.best_by_accuracy else -1
    # A training that never improved on s3prl's starting value comes after all that did.
    ranks = [-math.inf if of["dev"] is None else sign * of["dev"] for _, of in trainings]
    best, of_best = trainings[ranks.index(max(ranks))]
    started = time.monotonic()
    checkpoint = best.expdir / of_best["tested"]
    metrics = _test(best, checkpoint)
    tried = ("learning_rate", "dev", "seconds", "train_command")
    results = _results(best, checkpoint, metrics) | {
        "learning_rate": best.learning_rate,
        "dev": of_best["dev"],
        "learning_rates": [{key: of[key] for key in tried} for _, of in trainings] if cell.learning_rates else [],
        "seconds": {
            "train": round(sum(of["seconds"] for _, of in trainings), 2),
            "evaluate": round(time.monotonic() - started, 2),
        },
        **{key: of_best[key] for key in ("resumed_at_step", "step_seconds", "peak_memory_bytes")},
    }
    write_json(cell.results_file, results)


def _prepare(cell: Cell) -> int | None:
    """Make the folder ready; return the step at which training goes on, None when it starts anew."""
    started_file = cell.training_folder / "cell.json"
    steps = [int(path.stem.removeprefix("states-")) for path in cell.expdir.glob("states-*.ckpt")]
    if steps and read_json(started_file) == cell.training_identity:
        return max(steps)
    # What lies here is of another configuration, or ended before it saved anything.
    for stale in (cell.results_file, cell.trained_file, started_file):
        stale.unlink(missing_ok=True)
    shutil.rmtree(cell.expdir, ignore_errors=True)
    cell.expdir.mkdir()
    with atomic_write(cell.training_folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(cell.config, sort_keys=False), encoding="utf-8")
    write_json(started_file, cell.training_identity)
    return None


def _train_arguments(cell: Cell) -> list[str]:
    # Always by its path, so that the command needs no environment to find it.
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    task: Task = TASKS[cell.task]
    return [
        *("-m", "train", "-u", cell.upstream, *checkpoint, "-d", task.downstream),
        *("-c", str(cell.training_folder / "config.yaml"), "-p", str(cell.expdir)),
        *("--seed", str(cell.seed), "--device", cell.device),
        *_store_arguments(cell),
    ]


def _store_arguments(cell: Cell) -> list[str]:
    if cell.store is None:
        return []
    folder, gigabytes = str(cell.store.folder), str(cell.store.max_bytes / 2**30)
    return [
        *("--feature-store", folder, "--feature-store-gb", gigabytes),
        *("--feature-store-dtype", cell.store.dtype),
    ]


def _test_arguments(cell: Cell, checkpoint: Path) -> list[str]:
    split = TASKS[cell.task].eval_split
    return ["-m", "evaluate", "-t", split, "-e", str(checkpoint), "--device", cell.device]


def command(arguments: list[str]) -> str:
    return shlex.join(["superbit", "downstream", *arguments])


def _train(cell: Cell, resumed: bool, on_step: Callable[[int], None]) -> None:
    from runners.downstream import run as downstream

    arguments = _train_arguments(cell)
    if resumed:
        arguments = ["-m", "train", "-e", str(cell.expdir), "--device", cell.device, *_store_arguments(cell)]
    downstream.main(arguments, on_step)


def _dev_value(cell: Cell, checkpoint: Path) -> float | None:
    """The task's metric on dev, of the checkpoint that was best there; None where nothing was."""
    import torch

    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets torch load the checkpoints)

    if checkpoint.name != TASKS[cell.task].best:
        return None
    return float(torch.load(checkpoint, map_location="cpu", weights_only=True)["Downstream"]["best_score"])


def _checkpoint_to_test(cell: Cell) -> Path:
    """The best on dev; the last states where there is no dev, or nothing that s3prl calls an improvement there."""
    best = cell.expdir / TASKS[cell.task].best
    if best.is_file():
        return best
    states = {int(path.stem.removeprefix("states-")): path for path in cell.expdir.glob("states-*.ckpt")}
    if not states:
        raise UserError(
            f"training of {cell.name} left no states-*.ckpt:"
            " runner.eval_step and runner.save_step must not exceed runner.total_steps"
        )
    return states[max(states)]


def _test(cell: Cell, checkpoint: Path) -> dict[str, float]:
    from runners.downstream import run as downstream

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
        "tested": checkpoint.name,
        "best_on_dev": not task.best or checkpoint.name == task.best,
        "command": command(_test_arguments(cell, checkpoint)),
        "train_command": command(_train_arguments(cell)),
        **origin(cell, metrics),
    }


def origin(cell: Cell, metrics: dict[str, float]) -> dict[str, Any]:
    """What the results of any cell say: its number, and what it was made with."""
    task: Task = TASKS[cell.task]
    return {
        "upstream": cell.label,
        "name": cell.upstream,
        "task": cell.task,
        "metric": task.metric,
        "value": metrics[task.metric],
        "higher_is_better": task.higher_is_better,
        "metrics": metrics,
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
