"""The flags of `superbit downstream`, parsed without torch and s3prl, so that --help and errors appear at once."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from runners.downstream.effects import check_flags
from runners.downstream.states import latest_state
from runners.features.settings import DTYPES
from runners.tasks import TASKS
from upstreams.errors import UserError, nearest

# Flags that s3prl does not have; `given`, the names of the flags in the command line; and `task`, what -d names.
OWN_FLAGS = ("corpora", "threads", "feature_store", "feature_store_gb", "feature_store_dtype")
PARSED = ("given", "task")  # entries that `parse` adds; no flags of the command

EXAMPLES = """examples:
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora DIR -o config.optimizer.lr=1e-3
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora DIR -a      (resumes after an interruption)
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora DIR --feature-store runs/features
  superbit downstream -m evaluate -e runs/ks/dev-best.ckpt
  superbit downstream -m evaluate -e runs/asr/dev-clean-best.ckpt -t test-clean
  torchrun --nproc_per_node 2 -m superbit downstream -m train -u fbank -d ks -p runs/ks --corpora DIR
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (superbit downstream --help lists the flags)")


def parser() -> argparse.ArgumentParser:
    """Return the parser: all flags of s3prl's run_downstream in s3prl's spelling, and this project's own."""
    flags = _Parser(
        prog="superbit downstream",
        usage="superbit downstream -m train|evaluate -u NAME -d TASK -p DIR --corpora DIR [flags]\n"
        "       superbit downstream -m train|evaluate -e CKPT|DIR [flags]",
        description="Train or evaluate a SUPERB task on a frozen upstream: s3prl's run_downstream with the same flags.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument_group("what to do").add_argument
    add(
        *("-m", "--mode"),
        choices=["train", "evaluate", "inference"],
        required=True,
        help="train a head, evaluate a checkpoint, or transcribe one file (inference, asr only)",
    )
    add(
        *("-t", "--evaluate_split"),
        metavar="SPLIT|FILE",
        help="split to evaluate (default: the task's test split), or audio file for inference",
    )
    add("-o", "--override", metavar="CHANGES", help="changes to existing keys: 'config.optimizer.lr=1e-3,,args.seed=2'")

    add = flags.add_argument_group("task and corpora").add_argument
    add("-d", "--downstream", metavar="TASK", help=f"task: {' '.join(TASKS)}, or a downstream by s3prl's name")
    add("-c", "--config", metavar="FILE", help="the task's configuration (default: SUPERB's official one)")
    add(
        *("-v", "--downstream_variant"),
        metavar="VARIANT",
        help="for er, the test fold, fold1 to fold5; for other downstreams of s3prl, their variant",
    )
    add(
        "--corpora",
        metavar="DIR",
        help="folder of the corpora (default: $SUPERBIT_CORPORA); with -e, it replaces the checkpoint's paths",
    )

    add = flags.add_argument_group("upstream").add_argument
    add("-u", "--upstream", metavar="NAME", help="a name in s3prl.hub: this project's or one of s3prl's own")
    add(
        "--upstream-module",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module that puts other upstreams into s3prl.hub; repeatable",
    )
    add("-k", "--upstream_ckpt", metavar="FILE", help="checkpoint of the upstream, if its name does not imply one")
    add("-g", "--upstream_model_config", metavar="FILE", help="configuration for s3prl's *_local upstreams")
    add("-r", "--upstream_refresh", action="store_true", help="download the upstream's cached checkpoint again")
    add("-f", "--upstream_trainable", action="store_true", help="fine-tune the upstream (default: it is frozen)")
    add(
        *("-s", "--upstream_feature_selection"),
        default="hidden_states",
        metavar="FEATURES",
        help="the upstream's output to use (default: %(default)s)",
    )
    add(
        *("-l", "--upstream_layer_selection"),
        type=int,
        metavar="LAYER",
        help="use one layer (default: the weighted sum of all layers)",
    )
    add("--upstream_feature_normalize", action="store_true", help="apply layer norm before the weighted sum")
    add(
        "--hub",
        default="torch",
        choices=["torch", "huggingface"],
        help="only torch is supported (default: %(default)s)",
    )
    add("--upstream_model_name", default="model.pt", help="not supported (default: %(default)s)")
    add("--upstream_revision", help="not supported")

    add = flags.add_argument_group("experiment").add_argument
    add("-p", "--expdir", metavar="DIR", help="folder for checkpoints, logs and predictions")
    add("-n", "--expname", metavar="NAME", help="short for -p result/downstream/NAME")
    add("-a", "--auto_resume", action="store_true", help="resume if the experiment's folder holds a checkpoint")
    add(
        *("-e", "--past_exp"),
        metavar="CKPT|DIR",
        help="resume from a checkpoint, or evaluate it; its arguments and configuration apply: change them with -o "
        "(-k, -g, -p and --corpora replace its paths)",
    )
    add(
        "-i",
        "--init_ckpt",
        metavar="CKPT",
        help="checkpoint to take the initial weights from, and nothing else",
    )
    add("--push_to_hf_hub", default=False, help="not supported")
    add("--hf_hub_org", help="not supported")

    add = flags.add_argument_group("running").add_argument
    add("--seed", default=1337, type=int, help="random seed (default: %(default)s)")
    add("--device", help="cpu or cuda (default: cuda if torch finds a GPU)")
    add(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: 1 on CPU; more can make the LSTMs of asr and sf 20 times slower)",
    )
    add("--feature-store", metavar="DIR", help="folder to store the upstream's features in: each is computed only once")
    add(
        "--feature-store-gb",
        type=float,
        default=32.0,
        metavar="GB",
        help="largest size of the feature store in GiB; the oldest features are removed (default: %(default)s)",
    )
    add(
        "--feature-store-dtype",
        choices=DTYPES,
        default="fp16",
        help="number format of stored features (default: %(default)s)",
    )
    add("--backend", help="backend of distributed training (default: nccl on GPU, gloo on CPU)")
    add(
        *("--local_rank", "--local-rank"),
        type=int,
        metavar="RANK",
        default=os.environ.get("LOCAL_RANK"),
        help="set by the launcher of distributed training",
    )
    add("--cache_dir", metavar="DIR", help="folder for the checkpoints that s3prl downloads")
    add("--verbose", action="store_true", help="print the head and its number of parameters")
    add("--disable_cudnn", action="store_true", help="run without cuDNN")
    return flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags, with `downstream` as s3prl's name and `config` as a file; `given` holds those in `argv`.

    Raises UserError for bad flags; --help prints the help and exits.
    """
    flags = parser()
    options, unknown = flags.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise UserError(f"there is no flag {flag!r}: {nearest(flag, flags._option_string_actions)}")
    options.given = _given(argv)
    options.task = options.downstream
    check_flags(options)
    if options.expdir is None and options.expname is not None:
        options.expdir = f"result/downstream/{options.expname}"
    make_absolute(options)
    if options.auto_resume and options.expdir is None:
        raise UserError("-a needs the experiment's folder: add -p DIR")
    if options.auto_resume and latest_state(options.expdir):
        options.past_exp = options.expdir
    if options.feature_store and options.feature_store_gb <= 0:
        raise UserError(f"--feature-store-gb must be above 0, not {options.feature_store_gb}")
    if options.hub == "huggingface" or options.push_to_hf_hub:
        raise UserError("the Hugging Face Hub is not supported: keep --hub torch and remove --push_to_hf_hub")
    if options.past_exp:
        if options.downstream in TASKS:
            options.downstream = TASKS[options.downstream].downstream
    elif options.downstream is None:
        raise UserError(f"the task is missing: add -d with one of {', '.join(TASKS)}")
    else:
        options.downstream, options.config = _task_and_config(options.downstream, options.config)
    return options


def _given(argv: Sequence[str]) -> frozenset[str]:
    """Return the names of the flags in `argv`, those with their default value included."""
    flags = parser()
    for action in flags._actions:
        action.default = argparse.SUPPRESS
    return frozenset(vars(flags.parse_args(list(argv))))


def make_absolute(args: argparse.Namespace) -> None:
    """Make the paths absolute that a checkpoint stores: it is used from other folders, too."""
    if args.expdir:
        args.expdir = str(Path(args.expdir).absolute())
    for key in ("upstream_ckpt", "upstream_model_config"):
        # A name without a file may be a URL.
        if (file := getattr(args, key)) and Path(file).exists():
            setattr(args, key, str(Path(file).absolute()))


def _task_and_config(name: str, config: str | None) -> tuple[str, str]:
    """Return s3prl's name of a downstream and its configuration file; `name` is a task or s3prl's name."""
    if name in TASKS:
        return TASKS[name].downstream, config or str(TASKS[name].config_file)
    tasks = [task for task in TASKS.values() if task.downstream == name]
    if config is None and len(tasks) > 1:
        raise UserError(f"-d {name} is several tasks: use -d {' or -d '.join(task.name for task in tasks)}, or add -c")
    if config is None and tasks:
        return name, str(tasks[0].config_file)
    package = importlib.util.find_spec("s3prl")
    folders = (package.submodule_search_locations if package else None) or []
    names = {expert.parent.name for folder in folders for expert in Path(folder).glob("downstream/*/expert.py")}
    if name not in names:
        raise UserError(f"there is no task {name!r} (-d): {nearest(name, names | TASKS.keys())}")
    if config is None:
        raise UserError(f"-d {name} needs its configuration: add -c FILE")
    return name, config
