"""Checks of an experiment before it starts: what is wrong is said before anything is computed or written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from runners import tasks
from runners.corpora.check import check_config
from runners.corpora.files import check_audio
from runners.downstream.states import latest_state, read_state
from runners.downstream.values import check_values
from runners.tasks import Task
from upstreams import registry
from upstreams.errors import UserError
from upstreams.packed import file
from upstreams.s3prl.names import check_upstream, import_modules


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
    elif args.mode == "train":
        tasks.check_keys(None, config)
        check_values(None, config)
    import_modules(args.upstream_module)
    check_upstream(args.upstream, args.upstream_ckpt, args.upstream_model_config, args.upstream_refresh)
    if args.upstream_trainable and args.upstream in registry.names():
        path = registry.checkpoint_path(args.upstream, args.upstream_ckpt)
        if file.is_packed(path):
            raise UserError(f"{path} is packed and cannot be fine-tuned (-f): give the checkpoint it was packed from")


def _check_arguments(args: argparse.Namespace) -> None:
    if not args.expdir:
        raise UserError("the experiment's folder is missing: add -p DIR")
    if not args.upstream:
        raise UserError("the upstream is missing: add -u NAME")
    folder = Path(args.expdir)
    if args.mode == "train" and not args.past_exp and (found := sorted(folder.glob("*.ckpt"))):
        resume = "add -a to resume it, or " if latest_state(folder) else ""
        raise UserError(f"{folder} holds an experiment already ({found[0].name}): {resume}choose another -p")
    if args.init_ckpt and not args.past_exp:
        read_state(args.init_ckpt)


def _check_inference(args: argparse.Namespace, task: Task | None) -> None:
    if task is not None and task.name != "asr":
        raise UserError(f"s3prl infers single files (-m inference) for asr only, not for {task.name}")
    if not Path(args.evaluate_split).is_file():
        raise UserError(f"there is no audio file {args.evaluate_split} (-t)")
    file = Path(args.evaluate_split).absolute()
    check_audio(file.parent, [file.name])


def _check_task(args: argparse.Namespace, config: dict[str, Any], task: Task) -> None:
    if args.mode == "train" and not task.has_head:
        raise UserError(
            f"{task.name} trains nothing: use -m evaluate -u NAME -l LAYER, with -t dev to find the best layer, "
            "and then with -t test"
        )
    if args.mode == "evaluate" and task.has_head and not args.init_ckpt:
        raise UserError(f"-m evaluate needs a trained head of {task.name}: add -e CKPT")
    tasks.check_keys(task, config)
    check_values(task, config)
    check_config(task, config, [args.evaluate_split] if args.mode == "evaluate" else None)
