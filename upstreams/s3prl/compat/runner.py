"""s3prl's training loop: several ranks, complete checkpoints, and errors where it would silently do something else."""

from __future__ import annotations

import glob
import os
import types
from pathlib import Path
from typing import Any

import torch

from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write
from upstreams.s3prl.compat.patching import Fix, Overlay, needs


class _Nowhere:
    """A file for a progress bar that is not shown."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


@needs("Runner._get_optimizer", "Runner.train", "tqdm", "is_leader_process")
def end_training_on_every_rank(runner: types.ModuleType) -> None:
    """Advance the progress bar on every rank: the training loop ends by it, and only rank 0 advances it.

    The loop calls the optimizer's `zero_grad` once a step, whatever became of the gradient: the other ranks advance
    their bars there. The bar is closed even if training fails; an open bar would be drawn again below the error.
    """
    get_optimizer, run = runner.Runner._get_optimizer, runner.Runner.train
    bars: dict[str, Any] = {}

    class StepBar(runner.tqdm):  # type: ignore[name-defined]
        def __init__(self, *args: Any, desc: str | None = None, **kwargs: Any):
            if os.environ.get("TQDM_DISABLE") and desc == "overall":
                # A disabled bar does not count, and the training loop would never end: it counts without being shown.
                kwargs |= {"disable": False, "file": _Nowhere()}
            super().__init__(*args, desc=desc, **kwargs)
            if desc == "overall":
                bars["overall"] = self

    def _get_optimizer(self: Any, models: Any) -> Any:
        optimizer = get_optimizer(self, models)
        if not runner.is_leader_process():
            zero_grad = optimizer.zero_grad

            def advance_and_zero() -> None:
                bars["overall"].update(1)
                zero_grad()

            optimizer.zero_grad = advance_and_zero
        return optimizer

    def train(self: Any) -> None:
        try:
            run(self)
        finally:
            if "overall" in bars:
                bars.pop("overall").close()

    runner.tqdm = StepBar  # type: ignore[attr-defined]
    runner.Runner._get_optimizer = _get_optimizer
    runner.Runner.train = train


@needs("DDP")
def let_rank_zero_evaluate_alone(runner: types.ModuleType) -> None:
    """Turn off DDP's broadcast of buffers: its forward would wait for the other ranks while rank 0 evaluates alone.

    On a CPU, DDP accepts no `device_ids`.
    """
    ddp = runner.DDP

    def wrap(model: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> torch.nn.Module:
        on_gpu = next(model.parameters()).is_cuda
        return ddp(model, device_ids=device_ids if on_gpu else None, broadcast_buffers=False, **kwargs)

    runner.DDP = wrap  # type: ignore[attr-defined]


@needs("torch", "os")
def save_atomically(runner: types.ModuleType) -> None:
    """Write each checkpoint under a temporary name, and delete the previous one only when the new one is complete.

    s3prl deletes the previous checkpoint first: a run that stops while it saves would leave half a checkpoint.
    """
    outdated: list[str] = []

    def save(states: Any, path: str) -> None:
        with atomic_write(path) as temporary:
            torch.save(states, temporary)
        if Path(path).name.startswith("states-"):
            for old in outdated:
                # A path of another folder is from an earlier run in this process that stopped before it saved.
                if old != path and Path(old).parent == Path(path).parent:
                    Path(old).unlink(missing_ok=True)
            outdated.clear()

    runner.torch = Overlay(torch, save=save)  # type: ignore[attr-defined]
    runner.os = Overlay(os, remove=outdated.append)  # type: ignore[attr-defined]


@needs("glob.glob")
def find_checkpoints_in_any_folder(runner: types.ModuleType) -> None:
    """Take the folder's name literally when old checkpoints are searched: with `[1]` in it, none would be deleted."""

    def find(pattern: str) -> list[str]:
        folder, name = os.path.split(pattern)
        return glob.glob(os.path.join(glob.escape(folder), name))  # noqa: PTH118, PTH207

    runner.glob = Overlay(glob, glob=find)  # type: ignore[attr-defined]


@needs("Runner._get_downstream")
def refuse_empty_loaders(runner: types.ModuleType) -> None:
    """Raise UserError for an empty data loader: training would never end, and evaluation would divide by zero."""
    get_downstream = runner.Runner._get_downstream

    def _get_downstream(self: Any) -> Any:
        entry = get_downstream(self)
        get_dataloader = entry.model.get_dataloader

        def checked(split: str, **kwargs: Any) -> Any:
            loader = get_dataloader(split, **kwargs)
            if len(loader) == 0:
                raise UserError(
                    f"the {split} split of {self.args.downstream} fills no batch: add utterances or reduce the batch "
                    "size in the config"
                )
            return loader

        entry.model.get_dataloader = checked
        return entry

    runner.Runner._get_downstream = _get_downstream


@needs("Runner._get_upstream")
def fine_tune_frozen_upstreams(runner: types.ModuleType) -> None:
    """Unfreeze an upstream that stays in eval mode unless -f asks for fine-tuning; refuse one without parameters."""
    get_upstream = runner.Runner._get_upstream

    def _get_upstream(self: Any) -> Any:
        entry = get_upstream(self)
        if self.args.upstream_trainable:
            model = getattr(entry.model, "module", entry.model)  # inside DDP
            if hasattr(model, "fine_tune"):
                model.fine_tune()
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise UserError(f"{self.args.upstream} has no parameters to fine-tune: remove -f")
        return entry

    runner.Runner._get_upstream = _get_upstream


@needs("Runner._get_featurizer", "SAMPLE_RATE")
def refuse_unknown_features(runner: types.ModuleType) -> None:
    """Raise UserError for an unknown feature name (-s): s3prl would use hidden_states without an error."""
    get_featurizer = runner.Runner._get_featurizer

    def _get_featurizer(self: Any) -> Any:
        entry = get_featurizer(self)
        wanted = self.args.upstream_feature_selection
        if entry.model.feature_selection != wanted:
            with torch.no_grad():
                features = self.upstream.model([torch.zeros(runner.SAMPLE_RATE, device=self.args.device)])
            raise UserError(f"{self.args.upstream} has no features {wanted!r} (-s): {nearest(wanted, features)}")
        return entry

    runner.Runner._get_featurizer = _get_featurizer


FIXES: dict[str, tuple[Fix, ...]] = {
    "s3prl.downstream.runner": (
        end_training_on_every_rank,
        let_rank_zero_evaluate_alone,
        save_atomically,
        find_checkpoints_in_any_folder,
        refuse_empty_loaders,
        fine_tune_frozen_upstreams,
        refuse_unknown_features,
    ),
}
