"""The arguments and the configuration of an experiment that is resumed or evaluated (-e): those of its checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from runners import tasks
from runners.downstream.states import latest_state, read_state
from runners.tasks import Task
from upstreams.errors import UserError

# With -e, s3prl takes every argument from the checkpoint except these.
NOT_FROM_CHECKPOINT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")

# Where things lie may have changed since then: what is given replaces what the checkpoint holds.
REPLACED_IF_GIVEN = ("expdir", "upstream_ckpt", "upstream_model_config", "upstream_module")


def from_checkpoint(given: argparse.Namespace, flags: Collection[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
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
    saved, config = read_checkpoint(path, "-e")
    saved = {key: value for key, value in saved.items() if key not in NOT_FROM_CHECKPOINT}
    saved["expdir"] = str(path.absolute().parent)
    saved |= {key: value for key in REPLACED_IF_GIVEN if (value := getattr(given, key))}
    for key in sorted(saved.keys() & flags):
        value = getattr(given, key)
        if key not in ("config", "auto_resume", "expname") and value != saved[key]:
            print(f"[superbit] {key} stays {saved[key]!r} as in {path}; to change it, add -o args.{key}={value!r}")
    args = argparse.Namespace(**{**vars(given), **saved})
    args.past_exp = args.init_ckpt = str(path)
    return args, config


def read_checkpoint(path: Path, flag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the configuration that a checkpoint of s3prl holds; raise UserError for another file."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} ({flag})")
    return arguments_of(path, read_state(path))


def arguments_of(path: Path, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the configuration in the contents of a checkpoint; raise UserError if it lacks them."""
    args, config = state.get("Args"), state.get("Config")
    if not isinstance(args, argparse.Namespace) or not isinstance(config, dict):
        raise UserError(f"{path} is not a checkpoint of a downstream experiment: it lacks s3prl's Args and Config")
    return dict(vars(args)), config


def find_files(config: dict[str, Any], task: Task, corpora: str | None) -> None:
    """Replace the paths in a checkpoint's configuration: all by those below `corpora` if it is given.

    Without it, only files of this package that are missing, as the installation may have moved.
    """
    paths = tasks.path_keys(task)
    packaged = dict(tasks.flat_keys(tasks.read_config(task.config_file, corpora)))
    for key, saved in dict(tasks.flat_keys(config)).items():
        if key not in paths:
            continue
        is_packaged = isinstance(packaged[key], str) and Path(packaged[key]).is_relative_to(tasks.CONFIGS)
        if corpora or (is_packaged and not Path(saved).exists()):
            tasks.set_key(config, key, packaged[key])


def say_unused_config(file: str, corpora: str | None, config: dict[str, Any], path: str) -> None:
    """Print each value of the file of -c that differs from the checkpoint's, which applies."""
    used = dict(tasks.flat_keys(config))
    for key, value in tasks.flat_keys(tasks.read_config(file, corpora)):
        if not isinstance(value, dict) and "${root}" not in str(value) and key in used and used[key] != value:
            print(
                f"[superbit] {key} stays {used[key]!r} as in {path}, not {value!r} as in {file}; to change it, add "
                f"-o config.{key}={value!r}"
            )
