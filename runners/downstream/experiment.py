"""One experiment, run by s3prl from resolved settings."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import yaml
from torch import distributed

from runners.downstream.runner import MetricRecorder, Runner
from runners.downstream.scoring.external import SCORERS
from runners.downstream.settings import Settings
from runners.features.audio_cache import cached_audio
from runners.tasks import Task
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.s3prl.compat.patching import replaced

# isort: split
from s3prl import run_downstream
from s3prl.util import download


def run(settings: Settings, on_step: Callable[[int], None] | None) -> dict[str, float] | None:
    """Train or evaluate; return the metrics of an evaluation by s3prl's names, unrounded, and otherwise None."""
    args, task = settings.args, settings.task
    folder = Path(args.expdir)
    folder.mkdir(parents=True, exist_ok=True)
    is_first_rank = os.environ.get("RANK", "0") == "0"
    if args.mode == "train" and is_first_rank:
        args.config = str(folder / "config.yaml")
        with atomic_write(args.config) as temporary:
            temporary.write_text(yaml.safe_dump(settings.config, sort_keys=False), encoding="utf-8")
    recorder = MetricRecorder(args.evaluate_split)
    with _threads(settings.threads), _plain_errors_of_workers():
        _run_s3prl(settings, recorder, on_step)
    if args.mode == "train" and is_first_rank and task and task.best and not (folder / task.best).exists():
        print(f"[superbit] no dev evaluation improved on the initial {task.metric}: there is no {task.best}")
    if args.mode != "evaluate":
        return None
    metrics = recorder.metrics
    if task and task.name in SCORERS:
        metrics |= SCORERS[task.name](folder, args.evaluate_split, settings.config)
    _check_metrics(metrics, args.evaluate_split, task)
    return metrics


def _run_s3prl(settings: Settings, recorder: MetricRecorder, on_step: Callable[[int], None] | None) -> None:
    runner = functools.partial(Runner, store=settings.store, recorder=recorder, on_step=on_step)
    try:
        with (
            contextlib.nullcontext() if settings.store is None else cached_audio(),
            replaced(download, "_download_dir", Path(settings.args.cache_dir or download._download_dir)),
            replaced(run_downstream, "Runner", runner),
            replaced(run_downstream, "get_downstream_args", lambda: (settings.args, settings.config, [])),
        ):
            run_downstream.main()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use `number` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _plain_errors_of_workers() -> Iterator[None]:
    """Raise a UserError of a data-loader worker with its own message: torch adds the worker's traceback to it."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("Caught UserError in DataLoader worker"):
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        raise


def _check_metrics(metrics: Mapping[str, float], split: str, task: Task | None) -> None:
    """Raise UserError if there is no number to report: a head with NaN in its weights still has an accuracy."""
    if task and split == task.eval_split and task.metric not in metrics:
        raise UserError(f"evaluating {split} gave no {task.metric}: is the split empty?")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"evaluating {split} gave {name} = {value}, so there is no result")
