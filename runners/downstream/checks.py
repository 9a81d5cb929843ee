"""Checks of an experiment before it starts: what is wrong is said before anything is computed or written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from runners import tasks
from runners.corpora.check import check_config
from runners.tasks import Task
from upstreams import register, registry
from upstreams.errors import UserError, nearest


def check(args: argparse.Namespace, config: dict[str, Any], task: Task | None) -> None:
    """Raise UserError for arguments, a configuration or corpora with which s3prl would fail later."""
    _check_arguments(args)
    if missing := tasks.missing_root(config):
        raise UserError(
            f"{missing} needs the folder of the corpora: add --corpora DIR, set SUPERBIT_CORPORA, "
            f"or set the path with -o config.{missing}=PATH"
        )
    if args.mode == "inference":
        _check_inference(args, task)
    elif task is not None:
        _check_task(args, config, task)
    _check_upstream(args.upstream, args.upstream_ckpt)
    if task is None or task.has_head:
        _check_optimizer(config["optimizer"])


def _check_arguments(args: argparse.Namespace) -> None:
    if not args.expdir:
        raise UserError("the experiment's folder is missing: add -p DIR")
    if not args.upstream:
        raise UserError("the upstream is missing: add -u NAME")
    if args.init_ckpt and not Path(args.init_ckpt).is_file():
        raise UserError(f"there is no checkpoint {args.init_ckpt} (-i)")


def _check_inference(args: argparse.Namespace, task: Task | None) -> None:
    if task is not None and task.name != "asr":
        raise UserError(f"s3prl infers single files (-m inference) for asr only, not for {task.name}")
    if not Path(args.evaluate_split).is_file():
        raise UserError(f"there is no audio file {args.evaluate_split} (-t)")


def _check_task(args: argparse.Namespace, config: dict[str, Any], task: Task) -> None:
    if args.mode == "train" and not task.has_head:
        raise UserError(
            f"{task.name} trains nothing: use -m evaluate -u NAME -l LAYER, with -t dev to find the best layer, "
            "and then with -t test"
        )
    tasks.check_keys(task, config)
    check_config(task, config, [args.evaluate_split] if args.mode == "evaluate" else None)


def _check_upstream(name: str, checkpoint: str | None) -> None:
    ours = register()
    from s3prl import hub

    if name not in hub.options():
        raise UserError(f"there is no upstream {name!r} (-u): {nearest(name, hub.options())}")
    if name in ours and not (path := registry.checkpoint_path(name, checkpoint)).is_file():
        raise UserError(f"there is no checkpoint {path} (-k)")


def _check_optimizer(settings: dict[str, Any]) -> None:
    """Raise UserError for a name that s3prl would look up, and not find, when training starts."""
    from s3prl import optimizers

    known = [name.removeprefix("get_") for name in vars(optimizers) if name.startswith("get_")]
    if settings["name"] not in known:
        raise UserError(f"there is no optimizer.name {settings['name']!r}: {nearest(str(settings['name']), known)}")
    name = settings.get("torch_optim_name", "Adam")
    if not hasattr(torch.optim, str(name)):
        known = [name for name in dir(torch.optim) if name[0].isupper()]
        raise UserError(f"there is no optimizer.torch_optim_name {name!r}: {nearest(str(name), known)}")
