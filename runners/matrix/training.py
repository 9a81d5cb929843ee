"""One training of a head on a frozen upstream: train it, test the best of its fold, write results.json.

If a fold tries several learning rates, each is a training of its own. The training that ends last chooses the one that
is best on dev, and tests only that one.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from runners.corpora.check import checked_corpora
from runners.downstream.states import latest_state, read_state, step_of
from runners.matrix import locks
from runners.matrix.cell import Cell, Fold, Training, finished, trained
from runners.matrix.heartbeat import Heartbeat
from runners.matrix.identity import origin, reason
from runners.matrix.results import command, describe
from runners.matrix.stale import RESULTS, set_aside, settle_training
from runners.tasks import TASKS, flat_keys, path_keys, task_config
from upstreams.errors import UserError
from upstreams.files import atomic_write, read_json, sha256, write_json


def train_and_test(training: Training) -> None:
    """Train the head; once all heads of its fold are trained, test the best one and write the fold's results.json.

    An interrupted training resumes from s3prl's checkpoint. Training uses the feature store. The test uses none: it is
    `-m evaluate` on the checkpoint that was best on dev, as a user can repeat it. Raises UserError if there is no
    number to report, and if the upstream's checkpoint or the code has changed since the plan was made.
    """
    fold = training.fold
    check_unchanged(training.cell)
    alone = training.tried_rate is None  # then the folders of training and fold, and their locks, are the same
    with locks.hold(training.folder):
        if finished(fold) is not None:
            return  # by another runner, while this one waited
        if trained(training) is None:
            _train_and_record(training)
        if alone:
            _test_best(fold)
            return
    with locks.hold(fold.folder):
        if finished(fold) is None and all(trained(other) is not None for other in fold.trainings):
            _test_best(fold)


def resumable_step(training: Training) -> int | None:
    """Return the step from which the interrupted training can resume; None if it must start from scratch."""
    state = latest_state(training.expdir)
    if state is None or read_json(training.started_file) != training.identity:
        return None
    return step_of(state)


def check_unchanged(cell: Cell) -> None:
    """Raise UserError if the upstream's checkpoint or the code is not what the cell was planned with."""
    planned, checkpoint = cell.checkpoint_sha256, cell.checkpoint
    found = sha256(checkpoint) if checkpoint and checkpoint.is_file() else None
    if checkpoint and found != planned:
        raise UserError(
            f"the checkpoint {checkpoint} of {cell.name} was replaced after the plan was made: its SHA-256 was"
            f" {planned}, now it is {found or 'missing'}; put the old file back, or run the command again"
        )
    now = origin(*cell.upstream_modules)
    if now != {"code": cell.code, "versions": cell.versions}:
        changes = reason({"code": cell.code, "versions": cell.versions}, now)
        raise UserError(f"{cell.name}: {changes} since the plan was made; run the command again")


def _train_and_record(training: Training) -> None:
    if (stored := read_json(training.fold.results_file)) is not None:
        set_aside(training.fold.folder, RESULTS, stored.get("identity"))
    settle_training(training, training.identity)
    if trained(training) is not None:
        return
    resumed_at = resumable_step(training)
    if resumed_at is not None and (damage := _damage(training)):
        print(f"[superbit] {damage}; {training.name} starts from scratch")
        resumed_at = None
    if resumed_at is None:
        _start_from_scratch(training)
    progress = Heartbeat(training.progress_file, resumed_at or 0, training.config["runner"]["total_steps"])
    started = time.monotonic()
    try:
        _train(training, resumed=resumed_at is not None, on_step=progress)
    finally:
        training.progress_file.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    checkpoint = _checkpoint_to_test(training)
    write_json(
        training.trained_file,
        {
            "learning_rate": _learning_rate(training),
            "dev_percent": _dev_percent(training, checkpoint),
            "tested": checkpoint.name,
            "seconds": round(seconds, 2),
            "resumed_at_step": resumed_at,
            "step_seconds": round(seconds / max(1, progress.total - progress.first), 5),
            "peak_memory_bytes": progress.peak_memory,
            "train_command": command(train_arguments(training)),
            "identity": training.identity,
        },
    )


def _test_best(fold: Fold) -> None:
    """Test the training with the best dev score, of equal ones the first, and write the fold's results."""
    check_unchanged(fold.cell)
    trainings = [(training, trained(training) or {}) for training in fold.trainings]
    task = TASKS[fold.cell.task]
    sign = 1 if task.higher_is_better or task.best_by_accuracy else -1
    # A training whose dev score never improved on s3prl's initial value ranks below all others.
    scores = [record["dev_percent"] for _, record in trainings]
    ranks = [-math.inf if score is None else sign * score for score in scores]
    best, record_of_best = trainings[ranks.index(max(ranks))]
    started = time.monotonic()
    checkpoint = best.expdir / record_of_best["tested"]
    metrics = _test(best, checkpoint)
    tested_in = time.monotonic() - started
    tried = ("learning_rate", "dev_percent", "seconds", "train_command")
    write_json(
        fold.results_file,
        {
            "tested": checkpoint.name,
            "expdir": best.expdir.relative_to(fold.folder).as_posix(),
            "best_on_dev": not task.best or checkpoint.name == task.best,
            "command": command(_test_arguments(best, checkpoint)),
            "train_command": command(train_arguments(best)),
            **describe(fold, metrics),
            "learning_rate": _learning_rate(best),
            "dev_percent": record_of_best["dev_percent"],
            "learning_rates": [
                {key: record[key] for key in tried} for training, record in trainings if training.tried_rate is not None
            ],
            "seconds": {
                "train": round(sum(record["seconds"] for _, record in trainings), 2),
                "evaluate": round(tested_in, 2),
            },
            **{key: record_of_best[key] for key in ("resumed_at_step", "step_seconds", "peak_memory_bytes")},
        },
    )


def _damage(training: Training) -> str | None:
    """Return what is wrong with the checkpoints that a resumed training continues; None if they are whole."""
    for path in (latest_state(training.expdir), training.expdir / TASKS[training.cell.task].best):
        if path is not None and path.is_file():
            try:
                read_state(path)
            except UserError as error:
                return str(error)
    return None


def _start_from_scratch(training: Training) -> None:
    """Remove what an attempt at this training left that cannot resume; write the configuration and the identity."""
    training.trained_file.unlink(missing_ok=True)
    shutil.rmtree(training.expdir, ignore_errors=True)
    training.expdir.mkdir()
    write_started(training)


def write_started(training: Training) -> None:
    """Write the configuration and the identity of a training that starts."""
    with atomic_write(training.folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(training.config, sort_keys=False), encoding="utf-8")
    write_json(training.started_file, training.identity)


def _learning_rate(training: Training) -> float:
    return float(training.config["optimizer"]["lr"])


def train_arguments(training: Training) -> list[str]:
    """Return the flags of `superbit downstream` that train the head from its configuration in `config.yaml`."""
    # The checkpoint always by its path, so that the command needs no environment variable to find it.
    cell = training.cell
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    return [
        *("-m", "train", "-u", cell.upstream, *checkpoint, *modules(cell), "-d", TASKS[cell.task].downstream),
        *("-c", str(training.folder / "config.yaml"), "-p", str(training.expdir)),
        *("--seed", str(cell.seed), "--device", cell.device),
        *_store_arguments(training),
    ]


def modules(cell: Cell) -> list[str]:
    """Return the flags for the modules that the cell's upstream is from."""
    return [argument for name in cell.upstream_modules for argument in ("--upstream-module", name)]


def _store_arguments(training: Training) -> list[str]:
    store = training.cell.store
    if store is None:
        return []
    return [
        *("--feature-store", str(store.folder), "--feature-store-gb", str(store.max_bytes / 2**30)),
        *("--feature-store-dtype", store.dtype),
    ]


def _test_arguments(training: Training, checkpoint: Path) -> list[str]:
    split = TASKS[training.cell.task].eval_split
    return ["-m", "evaluate", "-t", split, "-e", str(checkpoint), *_paths(training), "--device", training.cell.device]


def _paths(training: Training) -> list[str]:
    """Return the flags for an existing head that name what it uses now: paths in its state may be outdated."""
    cell = training.cell
    checkpoint = ["-k", str(cell.checkpoint)] if cell.checkpoint else []
    standard = dict(flat_keys(task_config(cell.task, cell.corpora)))
    config = dict(flat_keys(training.config))
    own = {key: config[key] for key in path_keys(TASKS[cell.task]) if config[key] != standard[key]}
    # Two commas separate the changes of -o: in a path, they are written as an escape sequence.
    changes = ",,".join(f"config.{key}={value!r}".replace(",,", "\\x2c\\x2c") for key, value in own.items())
    return [*checkpoint, "--corpora", str(cell.corpora), *(["-o", changes] if own else [])]


def _train(training: Training, *, resumed: bool, on_step: Callable[[int], None]) -> None:
    from runners.downstream import run as downstream

    arguments = train_arguments(training)
    if resumed:
        folder = str(training.expdir)
        arguments = ["-m", "train", "-e", folder, "-p", folder, *_paths(training), "--device", training.cell.device]
        arguments += _store_arguments(training)
    with checked_corpora():
        downstream.main(arguments, on_step)


def _dev_percent(training: Training, checkpoint: Path) -> float | None:
    """Return the best checkpoint's dev score in percent; None if `checkpoint` is another, as no score improved."""
    task = TASKS[training.cell.task]
    if checkpoint.name != task.best:
        return None
    return task.in_percent(float(read_state(checkpoint)["Downstream"]["best_score"]))


def _checkpoint_to_test(training: Training) -> Path:
    """Return the checkpoint that is best on dev, or the last one if the task has no dev set or no score improved."""
    best = training.expdir / TASKS[training.cell.task].best
    if best.is_file():
        return best
    last = latest_state(training.expdir)
    if last is None:
        raise UserError(
            f"training of {training.name} left no states-*.ckpt:"
            " runner.eval_step and runner.save_step must not exceed runner.total_steps"
        )
    return last


def _test(training: Training, checkpoint: Path) -> dict[str, float]:
    from runners.downstream import run as downstream

    with checked_corpora():
        metrics = downstream.main(_test_arguments(training, checkpoint))
    metric = TASKS[training.cell.task].metric
    if not metrics or metric not in metrics:
        raise UserError(f"the test of {training.name} gave no {metric}: is its test set empty?")
    if not math.isfinite(metrics[metric]):
        raise UserError(f"the test of {training.name} gave {metric} = {metrics[metric]}, which is not a result")
    return metrics
