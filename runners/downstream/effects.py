"""Flags and changes (-o) that would have no effect: they are applied, refused, or a line says that they have none."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners import tasks
from runners.tasks import FOLD, FOLDS, TASKS, Task
from upstreams.errors import UserError, nearest

# Flags of s3prl for the Hugging Face Hub, which is not supported.
HUB_FLAGS = ("upstream_model_name", "upstream_revision", "hf_hub_org")
# Sections of a configuration that only training reads.
TRAINING = ("runner", "optimizer", "scheduler", "specaug")
# An optimizer's state cannot be used with another value of these.
FIXED = ("name", "torch_optim_name", "amsgrad")


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for given flags that exclude each other or need another one, and for numbers out of range."""
    given = options.given
    for one, other, flags in (("past_exp", "init_ckpt", "-e and -i"), ("expdir", "expname", "-p and -n")):
        if {one, other} <= given:
            raise UserError(f"{flags} exclude each other: give only one of them")
    if {"past_exp", "auto_resume"} <= given and options.auto_resume:
        raise UserError("-e and -a exclude each other: -e resumes from the checkpoint that it names")
    if "evaluate_split" in given and options.mode == "train":
        print("[superbit] -t has no effect on -m train: it chooses what -m evaluate and -m inference read")
    for flag in HUB_FLAGS:
        if flag in given:
            raise UserError(f"the Hugging Face Hub is not supported: remove --{flag}")
    for flag in ("feature_store_gb", "feature_store_dtype"):
        if flag in given and not options.feature_store:
            raise UserError(f"--{flag.replace('_', '-')} has no effect without --feature-store DIR")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads must be 1 or more, not {options.threads}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}, not {options.seed}")
    if options.local_rank is not None and "RANK" not in os.environ:
        raise UserError("--local_rank is set by torchrun: start the command with it, or remove the flag")


def check_task_flags(
    options: argparse.Namespace, args: argparse.Namespace, config: dict[str, Any], task: Task | None
) -> None:
    """Apply -v; raise UserError for flags that do not fit the task, and print which have no effect.

    options: the flags; args, config: those of a new experiment, or of a checkpoint.
    """
    given = options.given
    if args.past_exp:
        if task and options.task in TASKS and options.task != task.name:
            raise UserError(f"{args.past_exp} holds a head for {task.name}, not for {options.task} (-d)")
    elif "downstream_variant" in given and task:
        if task.name != "er":
            raise UserError(f"-v chooses the test fold of er, and {task.name} has no variants: remove it")
        if args.downstream_variant not in FOLDS:
            raise UserError(
                f"there is no fold {args.downstream_variant!r} (-v): {nearest(args.downstream_variant, FOLDS)}"
            )
        config["downstream_expert"]["datarc"]["test_fold"] = args.downstream_variant
    if "corpora" in given and not args.past_exp and "${root}" not in Path(args.config).read_text(encoding="utf-8"):
        print(f"[superbit] --corpora has no effect: {args.config} does not use ${{root}}")
    if "corpora" in given and args.past_exp and task is None:
        print(f"[superbit] --corpora has no effect: {args.past_exp} is not of a SUPERB task")
    if "backend" in given and args.local_rank is None:
        print("[superbit] --backend has no effect: this is a single process")


def check_changes(
    args: argparse.Namespace, changed: Sequence[str], before: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raise UserError for changes (-o) that cannot apply, and print which have no effect.

    changed: dotted keys of the configuration; before: the configuration without them.
    """
    fold = dict(tasks.flat_keys(config)).get(FOLD)
    if args.downstream_variant and fold is not None and fold != args.downstream_variant:
        raise UserError(f"-v is {args.downstream_variant}, but {FOLD} is {fold} (-o): give only one of them")
    if args.mode == "train" and args.past_exp:
        _check_optimizer(before, config)
    if args.mode != "train":
        for key in changed:
            if key.partition(".")[0] in TRAINING and key != "runner.evaluate_ratio":
                print(f"[superbit] config.{key} (-o) has no effect on -m {args.mode}")
    on_gpu = str(args.device).startswith("cuda")
    if not on_gpu and args.mode == "train" and config.get("runner", {}).get("fp16"):
        print("[superbit] runner.fp16 has no effect on a CPU")
    if not on_gpu and args.disable_cudnn:
        print("[superbit] --disable_cudnn has no effect on a CPU")


def _check_optimizer(saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UserError if the optimizer is not the one whose state was saved."""
    before, now = saved.get("optimizer", {}), config.get("optimizer", {})
    for key in FIXED:
        if before.get(key) != now.get(key):
            raise UserError(
                f"optimizer.{key} was {before.get(key)!r} and cannot be {now.get(key)!r} when a training resumes: "
                "start a new experiment, with -i to take over the weights"
            )
