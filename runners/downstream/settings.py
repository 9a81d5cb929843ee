"""The settings of one experiment, resolved from its flags, its configuration file and its checkpoint."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runners import tasks
from runners.downstream import upstream_files
from runners.downstream.arguments import OWN_FLAGS, make_absolute
from runners.downstream.checks import check
from runners.downstream.overrides import override
from runners.downstream.states import latest_state
from runners.downstream.values import check_values
from runners.features.settings import StoreSettings
from runners.tasks import Task
from upstreams.errors import UserError
from upstreams.s3prl import compat  # noqa: F401  (lets torch load the checkpoints)

# With -e, s3prl takes every argument from the checkpoint except these.
NOT_FROM_CHECKPOINT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")

# Paths, which may have changed since then: what is given replaces what the checkpoint holds.
REPLACED_IF_GIVEN = ("expdir", "upstream_ckpt", "upstream_model_config")


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
    for missing files, unknown keys, and a corpus that lacks something.
    """
    args = argparse.Namespace(**{key: value for key, value in vars(options).items() if key not in OWN_FLAGS})
    if options.past_exp:
        args, config = _from_checkpoint(args, options.given)
        task = tasks.task_of(args.downstream, config)
        if options.corpora and task:
            _move_corpora(config, task, options.corpora)
    else:
        config = tasks.read_config(args.config, options.corpora or os.environ.get("SUPERBIT_CORPORA"))
        task = tasks.task_of(args.downstream, config)
        if "config" in options.given and task is not None:
            tasks.check_keys(task, config)
            check_values(task, config, f" (in {args.config})")
    if args.override and args.override.lower() != "none":
        override(args.override, args, config)
    if args.evaluate_split is None:
        args.evaluate_split = task.eval_split if task else "test"
    _choose_device(args)
    make_absolute(args)
    check(args, config, task)
    _record_upstream_files(args)
    threads = options.threads or (1 if args.device == "cpu" else torch.get_num_threads())
    return Settings(args=args, config=config, task=task, threads=threads, store=_store_settings(options, args))


def _move_corpora(config: dict[str, Any], task: Task, folder: str) -> None:
    """Replace the paths in a checkpoint's configuration by those below `folder`."""
    paths = tasks.path_keys(task)
    for key, value in dict(tasks.flat_keys(tasks.task_config(task.name, folder))).items():
        if key in paths:
            tasks.set_key(config, key, value)


def _record_upstream_files(args: argparse.Namespace) -> None:
    """Put the upstream's files with their digests into s3prl's arguments, which its checkpoints hold.

    Raises UserError if the head was trained on other files than the ones that are given now. Initial weights (-i) may
    be from a head on another upstream if they are trained further.
    """
    trained_on: upstream_files.Files = {}
    if args.past_exp:
        trained_on = getattr(args, upstream_files.KEY, None) or {}
    elif args.init_ckpt and args.mode != "train":
        trained_on = upstream_files.saved_files(Path(args.init_ckpt))
    found = upstream_files.described(args)
    upstream_files.check_same(args.init_ckpt, trained_on, found)
    setattr(args, upstream_files.KEY, found)


def _from_checkpoint(given: argparse.Namespace, flags: Collection[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the arguments and the configuration of the checkpoint `given.past_exp`, with s3prl's exceptions.

    The experiment's folder is the checkpoint's: it may have moved. Prints each given flag that the checkpoint's value
    replaces.

    flags: names of the flags on the command line.
    """
    path = Path(given.past_exp)
    if path.is_dir():
        latest = latest_state(path)
        if latest is None:
            raise UserError(f"{path} holds no checkpoint states-<step>.ckpt to resume from (-e)")
        path = latest
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (-e)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved, config = vars(checkpoint["Args"]), checkpoint["Config"]
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint of a downstream experiment: {reason}") from None

    saved = {key: value for key, value in saved.items() if key not in NOT_FROM_CHECKPOINT}
    saved["expdir"] = str(path.absolute().parent)
    saved |= {key: value for key in REPLACED_IF_GIVEN if (value := getattr(given, key)) is not None}
    for key in sorted(saved.keys() & flags):
        value = getattr(given, key)
        if key not in ("config", "auto_resume") and value != saved[key]:
            print(f"[superbit] {key} stays {saved[key]!r} as in {path}; to change it, add -o args.{key}={value!r}")
    args = argparse.Namespace(**{**vars(given), **saved})
    args.past_exp = args.init_ckpt = str(path)
    return args, config


def _choose_device(args: argparse.Namespace) -> None:
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(args.device).startswith("cuda") and not torch.cuda.is_available():
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
