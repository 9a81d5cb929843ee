"""`superbit downstream`: s3prl's run_downstream with this project's upstreams and tasks, checked before it starts."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from runners import tasks
from runners.tasks import TASKS, Task
from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write

if TYPE_CHECKING:
    from torch import nn

# With -e, s3prl takes every argument but these from the checkpoint.
NOT_FROM_CHECKPOINT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")

EPILOG = """examples:
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --root CORPORA
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --root CORPORA -o config.optimizer.lr=1e-3 -a
  superbit downstream -m evaluate -e runs/ks/dev-best.ckpt
  torchrun --nproc_per_node 2 -m runners.downstream -m train -u fbank -d ks -p runs/ks --root CORPORA
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"superbit downstream: {message}; --help lists the flags")


def _parser() -> argparse.ArgumentParser:
    """All flags of s3prl's run_downstream, by their names, and this project's own."""
    parser = _Parser(
        prog="superbit downstream",
        description="Train or evaluate a SUPERB task on a frozen upstream: s3prl's run_downstream, same flags.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to do").add_argument
    add("-m", "--mode", choices=["train", "evaluate", "inference"], required=True)
    add("-t", "--evaluate_split", help="split to evaluate, or the audio file to infer (default: the task's test split)")
    add("-o", "--override", help="changes, e.g. 'config.optimizer.lr=1e-3,,args.seed=2'; keys must exist")

    add = parser.add_argument_group("task and corpora").add_argument
    add("-d", "--downstream", help=f"task: {' '.join(TASKS)}, or s3prl's name of a downstream")
    add("-c", "--config", help="its configuration (default: the official one of the task)")
    add("-v", "--downstream_variant", help="variant of the downstream; of ER the test fold, e.g. fold2")
    add(
        "--root",
        metavar="DIR",
        help="folder that holds the corpora, for ${root} in the configuration (default: SUPERBIT_CORPORA); with -e it "
        "replaces the paths in the checkpoint",
    )

    add = parser.add_argument_group("upstream").add_argument
    add("-u", "--upstream", help="name in s3prl.hub, of this project or of s3prl")
    add("-k", "--upstream_ckpt", metavar="FILE", help="its checkpoint, where the name does not find it")
    add("-g", "--upstream_model_config", help="its model configuration, for s3prl's *_local upstreams")
    add("-r", "--upstream_refresh", action="store_true", help="download its cached checkpoint again")
    add("-f", "--upstream_trainable", action="store_true", help="fine-tune the upstream instead of freezing it")
    add("-s", "--upstream_feature_selection", default="hidden_states", help="features to use (default: %(default)s)")
    add("-l", "--upstream_layer_selection", type=int, help="use one layer instead of the weighted sum")
    add("--upstream_feature_normalize", action="store_true", help="layer-normalise before the weighted sum")
    add("--upstream_model_name", default="model.pt", help="file in a Hugging Face repository (not supported)")
    add("--upstream_revision", help="commit of a Hugging Face repository (not supported)")
    add("--hub", default="torch", choices=["torch", "huggingface"], help="only torch is supported")

    add = parser.add_argument_group("experiment folder").add_argument
    add("-p", "--expdir", help="where checkpoints, logs and predictions go")
    add("-n", "--expname", help="short for -p result/downstream/NAME")
    add("-a", "--auto_resume", action="store_true", help="go on if the folder holds checkpoints")
    add(
        "-e",
        "--past_exp",
        metavar="CKPT|DIR",
        help="go on from a checkpoint or evaluate it; arguments and configuration come from it, change them with -o",
    )
    add("-i", "--init_ckpt", metavar="CKPT", help="start from a checkpoint's weights only")
    add("--push_to_hf_hub", default=False, help="not supported")
    add("--hf_hub_org", help="not supported")

    add = parser.add_argument_group("running").add_argument
    add("--seed", type=int, default=1337, help="seed of everything random (default: %(default)s)")
    add("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    add(
        "--threads",
        type=int,
        help="CPU threads (default: 1 on CPU, where more than one has made the LSTM of ASR and SF 20 times slower on "
        "a busy machine)",
    )
    add("--backend", help="backend of distributed training (default: nccl on GPU, gloo on CPU)")
    add(
        "--local_rank",
        "--local-rank",
        type=int,
        default=os.environ.get("LOCAL_RANK"),
        help="set by the launcher of distributed training",
    )
    add("--cache_dir", help="where s3prl keeps downloaded upstreams")
    add("--verbose", action="store_true", help="print more about the model")
    add("--disable_cudnn", action="store_true", help="do without cuDNN")
    return parser


def main(
    argv: Sequence[str], wrap_upstream: Callable[[nn.Module], nn.Module] | None = None
) -> dict[str, float] | None:
    """Run one experiment as `superbit downstream ARGV` does; may be called many times in one process.

    `wrap_upstream` gets the frozen upstream and returns the module that stands in for it. With -m evaluate the metrics
    that s3prl prints are returned, by their names. Raises UserError for bad input, all of it that can be seen in
    arguments, configuration and the corpus's lists before anything is computed.
    """
    parser = _parser()
    options = parser.parse_args(list(argv))
    root, threads = options.root, options.threads
    del options.root, options.threads
    config_file = _choose_config(options)

    import torch

    from upstreams import register, s3prl_compat  # noqa: F401  (lets s3prl import)

    if options.past_exp or (options.auto_resume and _states(options.expdir)):
        args, config = _continue(options, parser, root)
    else:
        if config_file is None:
            raise UserError("say which task to run with -d, or which checkpoint to use with -e")
        args = options
        config = tasks.read_config(config_file, root or os.environ.get("SUPERBIT_CORPORA"))
    override(args.override, args, config)
    _choose_device(args)
    task = _check(args, config)
    if args.upstream not in (names := _hub_names(register)):
        raise UserError(f"there is no upstream {args.upstream!r} (-u): {nearest(str(args.upstream), names)}")

    Path(args.expdir).mkdir(parents=True, exist_ok=True)
    if args.mode == "train" and os.environ.get("RANK", "0") == "0":
        args.config = str(Path(args.expdir, "config.yaml"))
        with atomic_write(args.config) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if threads is None and args.device == "cpu":
        threads = 1
    with _threads(threads or torch.get_num_threads()), _first_line_of_worker_errors():
        return _run(args, config, wrap_upstream, count_ctc=task is not None)
