"""s3prl's Runner with a feature store, a count of steps, and the metrics of an evaluation."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from runners.downstream.ctc_targets import count_targets
from runners.downstream.pooling import averages_over_time
from runners.downstream.resume import keep_settings
from runners.downstream.selection import check_selection
from runners.downstream.upstream_files import FLAGS, upstream_files
from runners.features.settings import StoreSettings
from runners.features.store import FeatureStore, open_store, weighted_sum
from upstreams import plugins
from upstreams.errors import UserError
from upstreams.s3prl import compat  # noqa: F401  (makes s3prl importable)

# isort: split
from s3prl.downstream.runner import Runner as S3prlRunner


class MetricRecorder:
    """Replaces the TensorBoard writer that a downstream expert logs its metrics to."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.metrics: dict[str, float] = {}

    def add_scalar(self, tag: str, value: float, global_step: int | None = None) -> None:
        """Record the value of the tag `<task>/<split>-<metric>`."""
        self.metrics[tag.rpartition("/")[2].removeprefix(f"{self.split}-")] = float(value)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Runner(S3prlRunner):
    """Trains or evaluates one experiment.

    store: settings of the feature store, or None. recorder: receives the metrics of an evaluation. on_step: called
    with the number of each completed training step.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: dict[str, Any],
        *,
        store: StoreSettings | None,
        recorder: MetricRecorder,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.store = store
        self.recorder = recorder
        self.on_step = on_step
        super().__init__(args, config)
        if args.mode == "train" and not args.past_exp:
            self.init_ckpt: dict[
                str, Any
            ] = {}  # the weights (-i) are loaded; the step and the optimizer are of another training
        if args.verbose:
            head = self.downstream.model
            print(f"{head}\n[superbit] the head has {sum(p.numel() for p in head.parameters())} parameters")

    def _load_weight(self, model: Any, name: str) -> None:
        try:
            with keep_settings(model):
                super()._load_weight(model, name)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
            raise UserError(
                f"the {name} in {self.args.init_ckpt} does not fit: it was saved with another configuration or on "
                f"another upstream ({reason})"
            ) from None

    def _get_upstream(self) -> Any:
        entry = super()._get_upstream()
        check_selection(entry.model, self.args)
        if self.store is not None:
            files = upstream_files(self.args)
            crop = self.config["downstream_expert"].get("datarc", {}).get("max_timestep")  # of speaker identification
            entry.model = open_store(
                entry.model,
                self.store,
                name=self.args.upstream,
                files=[*(files.get(argument) for argument in FLAGS), *plugins.sources(self.args.upstream_module)],
                device=self.args.device,
                crop_samples=crop,
                means=averages_over_time(self.args.downstream, self.config)
                and not self.args.upstream_feature_normalize,
            )
        return entry

    def _get_featurizer(self) -> Any:
        entry = super()._get_featurizer()
        featurizer = getattr(entry.model, "module", entry.model)  # inside DDP
        store = self.upstream.model
        if isinstance(store, FeatureStore) and not featurizer.normalize:
            featurizer._weighted_sum = lambda states: weighted_sum(featurizer.weights, states)
        if isinstance(store, FeatureStore) and store.means:
            featurizer.tolist = lambda wavs, features: list(features)  # one frame each, whatever the length
        return entry

    def _get_optimizer(self, models: Any) -> Any:
        optimizer = super()._get_optimizer(models)
        if self.on_step is not None:
            _count_steps(optimizer, self.on_step, self.init_ckpt.get("Step", 0))
        return optimizer

    def train(self) -> None:
        done, total = self.init_ckpt.get("Step", 0), self.config["runner"]["total_steps"]
        if done >= total:
            print(f"[superbit] {self.args.init_ckpt} is at step {done} of {total}: there is nothing to train")
        with count_targets(self.downstream.model, training=True) as targets:
            super().train()
        targets.print_counts("train")
        if isinstance(self.upstream.model, FeatureStore):
            self.upstream.model.print_usage()

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> Any:
        if split is None:
            split, logger = self.recorder.split, self.recorder
        with count_targets(self.downstream.model, training=False) as targets:
            saved = super().evaluate(split, logger, global_step)
        targets.print_counts(split)
        targets.log(f"{self.args.downstream}/{split}", logger, global_step)
        if isinstance(self.upstream.model, FeatureStore):
            if logger is self.recorder:
                self.upstream.model.print_usage()
            elif split == self.config["runner"]["eval_dataloaders"][-1]:  # once for each step
                self.upstream.model.log_usage(logger, global_step)
        return saved


def _count_steps(optimizer: Any, on_step: Callable[[int], None], done: int) -> None:
    """Call `on_step` after each step: s3prl's loop zeroes the gradients once a step, whatever became of them."""
    zero_grad, steps = optimizer.zero_grad, itertools.count(done + 1)

    def zero_and_count() -> None:
        zero_grad()
        on_step(next(steps))

    optimizer.zero_grad = zero_and_count
