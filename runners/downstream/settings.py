"""The settings of one experiment, resolved from its flags, its configuration file and its checkpoint."""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runners import tasks
from runners.downstream import effects, past, upstream_files
from runners.downstream.arguments import OWN_FLAGS, PARSED, make_absolute
from runners.downstream.checks import check
from runners.downstream.overrides import override
from runners.downstream.values import check_values
from runners.features.settings import StoreSettings
from runners.tasks import Task
from upstreams.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Everything that running an experiment needs."""

    args: argparse.Namespace  # s3prl's arguments
    config: dict[str, Any]  # s3prl's configuration
    task: Task | None  # None for a downstream of s3prl that is not a SUPERB task
    threads: int  # CPU threads of torch
    store: StoreSettings | None  # None: features are computed at every step


def resolve(options: argparse.Namespace) -> Settings:
    """Return the settings that the flags of `arguments.parse` stand for, checked.

    A new experiment reads its configuration file; a resumed or evaluated one reads its checkpoint. Raises UserError
    for missing files, unknown keys, values that s3prl cannot use, flags without effect, and a corpus that lacks
    something.
    """
    args = argparse.Namespace(
        **{key: value for key, value in vars(options).items() if key not in (*OWN_FLAGS, *PARSED)}
    )
    corpora = options.corpora or os.environ.get("SUPERBIT_CORPORA")
    if options.past_exp:
        args, config = past.from_checkpoint(args, options.given)
        task = tasks.task_of(args.downstream, config)
        if task:
            past.find_files(config, task, options.corpora)
    else:
        config = tasks.read_config(args.config, corpora)
        task = tasks.task_of(args.downstream, config)
        if "config" in options.given and (task or args.mode == "train"):
            tasks.check_keys(task, config)
            check_values(task, config, f" (in {args.config})")
    effects.check_task_flags(options, args, config, task)
    before = copy.deepcopy(config)
    changed = []
    if args.override and args.override.lower() != "none":
        changed = override(args.override, args, config)
    if args.evaluate_split is None:
        args.evaluate_split = task.eval_split if task else "test"
    _choose_device(args)
    make_absolute(args)
    effects.check_changes(args, changed, before, config)
    if options.past_exp and options.config:
        past.say_unused_config(options.config, corpora, config, args.past_exp)
    check(args, config, task)
    _record_upstream_files(args)
    threads = options.threads or (1 if args.device == "cpu" else torch.get_num_threads())
    return Settings(args=args, config=config, task=task, threads=threads, store=_store_settings(options, args))


def _record_upstream_files(args: argparse.Namespace) -> None:
    """Put the upstream's files with their digests into s3prl's arguments, which its checkpoints hold.

    Raises UserError if the head was trained on other files than the ones that are given now. Initial weights (-i) may
    be from a head on another upstream if they are trained further.
    """
    trained_on: upstream_files.Files = {}
    if args.past_exp:
        trained_on = getattr(args, upstream_files.KEY, None) or {}
    elif args.init_ckpt and args.mode != "train":
        saved, _ = past.read_checkpoint(Path(args.init_ckpt), "-i")
        trained_on = saved.get(upstream_files.KEY) or {}
    found = upstream_files.described(args)
    upstream_files.check_same(args.init_ckpt, trained_on, found)
    setattr(args, upstream_files.KEY, found)


def _choose_device(args: argparse.Namespace) -> None:
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(args.device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UserError(f"there is no device {args.device!r} (--device): valid are cpu, cuda and cuda:<number>")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch finds no GPU on this machine; use --device cpu")
    if args.backend is None:
        args.backend = "gloo" if args.device == "cpu" else "nccl"


def _store_settings(options: argparse.Namespace, args: argparse.Namespace) -> StoreSettings | None:
    if options.feature_store is None:
        return None
    if args.upstream_trainable:
        raise UserError("--feature-store needs a frozen upstream: remove -f or --feature-store")
    if args.upstream_feature_selection != "hidden_states":
        raise UserError("--feature-store stores only hidden_states: remove -s or --feature-store")
    folder = Path(options.feature_store).absolute()
    return StoreSettings(folder, int(options.feature_store_gb * 2**30), options.feature_store_dtype)
