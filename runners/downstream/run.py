"""`superbit downstream`: s3prl's run_downstream with this project's upstreams and tasks, checked before it starts."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from runners.downstream import arguments as downstream_args
from runners.downstream.scoring import external as scoring
from runners.features.settings import StoreSettings
from runners.tasks import Task
from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write


def main(argv: Sequence[str], on_step: Callable[[int], None] | None = None) -> dict[str, float] | None:
    """Run one experiment as `superbit downstream ARGV` does; it may be called many times in one process.

    `on_step` is called with the number of each training step that is done. With -m evaluate, the metrics that s3prl
    prints are returned by their names, unrounded. Raises UserError for bad input: where arguments, configuration,
    lists and file names show it, before anything is computed or written.
    """
    options = downstream_args.parse(argv)

    import torch

    args, config, task = downstream_args.resolve(options)
    _check_upstream(args)
    if task is None or task.has_head:
        _check_optimizer(config["optimizer"])
    store = _store_settings(options, args)
    Path(args.expdir).mkdir(parents=True, exist_ok=True)
    if args.mode == "train" and os.environ.get("RANK", "0") == "0":
        args.config = str(Path(args.expdir, "config.yaml"))
        with atomic_write(args.config) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    threads = options.threads or (1 if args.device == "cpu" else torch.get_num_threads())
    with _threads(threads), _errors_of_workers():
        metrics = _run(args, config, task, store, on_step)
    if args.mode == "train" and task and task.best and not Path(args.expdir, task.best).exists():
        print(
            f"[superbit] there is no {task.best}, as no evaluation beat the worst {task.metric}; states-*.ckpt is there"
        )
    return metrics


def _check_upstream(args: argparse.Namespace) -> None:
    from upstreams import register, registry

    ours = register()
    from s3prl import hub

    if args.upstream not in hub.options():
        raise UserError(f"there is no upstream {args.upstream!r} (-u): {nearest(args.upstream, hub.options())}")
    if args.upstream in ours:
        checkpoint = registry.checkpoint_path(args.upstream, args.upstream_ckpt)
        if not checkpoint.is_file():
            raise UserError(f"there is no checkpoint {checkpoint} (-k)")


def _checkpoint_file(args: argparse.Namespace) -> str | Path | None:
    """The file that the upstream is built from, where there is one."""
    from upstreams import registry

    ours = args.upstream in registry.names()
    return registry.checkpoint_path(args.upstream, args.upstream_ckpt) if ours else args.upstream_ckpt


def _check_optimizer(settings: dict[str, Any]) -> None:
    """Raise UserError for a name that s3prl would look up, and not find, when training starts."""
    import torch
    from s3prl import optimizers

    known = [name.removeprefix("get_") for name in vars(optimizers) if name.startswith("get_")]
    if settings["name"] not in known:
        raise UserError(f"there is no optimizer.name {settings['name']!r}: {nearest(str(settings['name']), known)}")
    name = settings.get("torch_optim_name", "Adam")
    if not hasattr(torch.optim, str(name)):
        known = [name for name in dir(torch.optim) if name[0].isupper()]
        raise UserError(f"there is no optimizer.torch_optim_name {name!r}: {nearest(str(name), known)}")


def _store_settings(options: argparse.Namespace, args: argparse.Namespace) -> StoreSettings | None:
    if options.feature_store is None:
        return None
    if args.upstream_trainable:
        raise UserError("--feature-store is for a frozen upstream: leave out -f, or the store")
    if args.upstream_feature_selection != "hidden_states":
        raise UserError("--feature-store keeps hidden_states: leave out -s, or the store")
    folder = Path(options.feature_store).absolute()
    return StoreSettings(folder, int(options.feature_store_gb * 2**30), options.feature_store_dtype)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _errors_of_workers() -> Iterator[None]:
    """A UserError of a data loader's worker, which arrives with the worker's traceback as its text, as it was."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("Caught UserError in DataLoader worker"):
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        raise


def _run(
    args: argparse.Namespace,
    config: dict[str, Any],
    task: Task | None,
    store: StoreSettings | None,
    on_step: Callable[[int], None] | None,
) -> dict[str, float] | None:
    from s3prl import run_downstream
    from torch import distributed

    from runners.downstream import ctc_targets
    from runners.features import store as feature_store
    from upstreams.s3prl.compat.patching import replaced

    metrics: dict[str, float] = {}

    class Runner(run_downstream.Runner):
        def _get_upstream(self) -> Any:
            entry = super()._get_upstream()
            if store is not None:
                crop = config["downstream_expert"].get("datarc", {}).get("max_timestep")  # SID's
                files = (_checkpoint_file(self.args), self.args.upstream_model_config)
                entry.model = feature_store.open_store(
                    entry.model, store, self.args.upstream, files, self.args.device, crop
                )
            return entry

        def _get_featurizer(self) -> Any:
            entry = super()._get_featurizer()
            featurizer = getattr(entry.model, "module", entry.model)  # within DDP
            if isinstance(self.upstream.model, feature_store.FeatureStore) and not featurizer.normalize:
                featurizer._weighted_sum = lambda states: feature_store.weighted_sum(featurizer.weights, states)
            return entry

        def _get_optimizer(self, models: Any) -> Any:
            optimizer = super()._get_optimizer(models)
            if on_step is not None:
                _count_steps(optimizer, on_step, self.init_ckpt.get("Step", 0))
            return optimizer

        def train(self) -> None:
            with ctc_targets.counted(self.downstream.model, training=True) as targets:
                super().train()
            targets.say("train")

        def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> Any:
            if split is None:
                split = self.args.evaluate_split
                logger = MetricRecorder(split, metrics)
            with ctc_targets.counted(self.downstream.model, training=False) as targets:
                saved = super().evaluate(split, logger, global_step)
            targets.say(split)
            targets.log(f"{args.downstream}/{split}", logger, global_step)
            return saved

    try:
        with (
            feature_store.waveforms_kept() if store is not None else contextlib.nullcontext(),
            replaced(run_downstream, "Runner", Runner),
            replaced(run_downstream, "get_downstream_args", lambda: (args, config, [])),
        ):
            run_downstream.main()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    if args.mode != "evaluate":
        return None
    if task and task.name in scoring.SCORERS:
        metrics |= scoring.SCORERS[task.name](args, config)
    _check_metrics(metrics, args.evaluate_split, task)
    return metrics


def _check_metrics(metrics: dict[str, float], split: str, task: Task | None) -> None:
    """Raise UserError where there is no number to report: a head with NaN in it still has an accuracy."""
    if task and split == task.eval_split and task.metric not in metrics:
        raise UserError(f"evaluating {split} gave no {task.metric}: is the split empty?")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"evaluating {split} gave {name} = {value}, so there is no result")


def _count_steps(optimizer: Any, on_step: Callable[[int], None], done: int) -> None:
    """Call `on_step` after each step: s3prl's loop zeroes the gradients once a step, whatever became of them."""
    zero_grad, steps = optimizer.zero_grad, itertools.count(done + 1)

    def count_and_zero() -> None:
        zero_grad()
        on_step(next(steps))

    optimizer.zero_grad = count_and_zero


class MetricRecorder:
    """Stands in for the TensorBoard writer that a downstream expert logs its metrics to."""

    def __init__(self, split: str, metrics: dict[str, float]):
        self.split = split
        self.metrics = metrics

    def add_scalar(self, tag: str, value: float, global_step: int | None = None) -> None:
        """`<task>/<split>-<metric>` and its value."""
        self.metrics[tag.rpartition("/")[2].removeprefix(f"{self.split}-")] = float(value)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
