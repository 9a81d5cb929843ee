"""The arguments and the configuration of one downstream experiment, resolved and checked before it starts."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from runners import tasks
from runners.corpora.check import check_config
from runners.downstream.states import latest_state
from runners.features.settings import DTYPES
from runners.tasks import TASKS, Task
from upstreams.errors import UserError, nearest

# Flags that s3prl does not know.
OWN_FLAGS = ("corpora", "threads", "feature_store", "feature_store_gb", "feature_store_dtype")

# With -e, s3prl takes every argument but these from the checkpoint.
NOT_FROM_CHECKPOINT = ("mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "device")

EXAMPLES = """examples:
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora CORPORA -o config.optimizer.lr=1e-3
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora CORPORA -a      (goes on if interrupted)
  superbit downstream -m train -u fbank_no_cmvn -d ks -p runs/ks --corpora CORPORA --feature-store runs/features
  superbit downstream -m evaluate -e runs/ks/dev-best.ckpt
  superbit downstream -m evaluate -e runs/asr/dev-clean-best.ckpt -t test-clean
  torchrun --nproc_per_node 2 -m superbit downstream -m train -u fbank -d ks -p runs/ks --corpora CORPORA
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (superbit downstream --help lists the flags)")


def parser() -> argparse.ArgumentParser:
    """All flags of s3prl's run_downstream under their names, and this project's own."""
    flags = _Parser(
        prog="superbit downstream",
        usage="superbit downstream -m train|evaluate -u NAME -d TASK -p DIR --corpora CORPORA [flags]\n"
        "       superbit downstream -m train|evaluate -e CKPT|DIR [flags]",
        description="Train or evaluate a SUPERB task on a frozen upstream: s3prl's run_downstream, same flags.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument_group("what to do").add_argument
    add("-m", "--mode", choices=["train", "evaluate", "inference"], required=True, help="what to do")
    add("-t", "--evaluate_split", help="split to evaluate (default: the task's test split), or file to infer")
    add("-o", "--override", help="changes: 'config.optimizer.lr=1e-3,,args.seed=2'; keys must exist")

    add = flags.add_argument_group("task and corpora").add_argument
    add("-d", "--downstream", help=f"task: {' '.join(TASKS)}, or a downstream by s3prl's name")
    add("-c", "--config", help="its configuration (default: the official one of the task)")
    add("-v", "--downstream_variant", help="variant of the downstream; ER's test fold where the config has none")
    add(
        "--corpora",
        metavar="DIR",
        help="folder of the corpora (default: $SUPERBIT_CORPORA); with -e, it replaces the old paths",
    )

    add = flags.add_argument_group("upstream").add_argument
    add("-u", "--upstream", help="a name in s3prl.hub: this project's or s3prl's own")
    add("-k", "--upstream_ckpt", metavar="FILE", help="its checkpoint, where the name does not find one")
    add("-g", "--upstream_model_config", metavar="FILE", help="its configuration, for s3prl's *_local upstreams")
    add("-r", "--upstream_refresh", action="store_true", help="download its cached checkpoint again")
    add("-f", "--upstream_trainable", action="store_true", help="fine-tune the upstream: it is frozen without")
    add("-s", "--upstream_feature_selection", default="hidden_states", help="features (default: %(default)s)")
    add("-l", "--upstream_layer_selection", type=int, help="one layer in place of the weighted sum of all")
    add("--upstream_feature_normalize", action="store_true", help="layer norm before the weighted sum")
    add(
        "--hub",
        default="torch",
        choices=["torch", "huggingface"],
        help="only torch is supported (default: %(default)s)",
    )
    add("--upstream_model_name", default="model.pt", help="not supported (default: %(default)s)")
    add("--upstream_revision", help="not supported")

    add = flags.add_argument_group("experiment").add_argument
    add("-p", "--expdir", metavar="DIR", help="where checkpoints, logs and predictions go")
    add("-n", "--expname", metavar="NAME", help="short for -p result/downstream/NAME")
    add("-a", "--auto_resume", action="store_true", help="go on where DIR holds checkpoints, else start")
    add(
        *("-e", "--past_exp"),
        metavar="CKPT|DIR",
        help="go on from a checkpoint, or evaluate it; it brings its arguments and configuration: change them by -o",
    )
    add("-i", "--init_ckpt", metavar="CKPT", help="take only the weights from a checkpoint")
    add("--push_to_hf_hub", default=False, help="not supported")
    add("--hf_hub_org", help="not supported")

    add = flags.add_argument_group("running").add_argument
    add("--seed", default=1337, type=int, help="of everything random (default: %(default)s)")
    add("--device", help="cpu or cuda (default: cuda where there is a GPU)")
    add(
        "--threads",
        type=int,
        help="CPU threads (default: 1 on CPU, as more can make the LSTMs of ASR and SF 20 times slower)",
    )
    add("--feature-store", metavar="DIR", help="keep the frozen upstream's features there and compute them only once")
    add(
        "--feature-store-gb",
        type=float,
        default=32.0,
        help="the most it may hold, the oldest out (default: %(default)s)",
    )
    add("--feature-store-dtype", choices=DTYPES, default="fp16", help="numbers it holds (default: %(default)s)")
    add("--backend", help="of distributed training (default: nccl on GPU, gloo on CPU)")
    add(
        *("--local_rank", "--local-rank"),
        type=int,
        default=os.environ.get("LOCAL_RANK"),
        help="given by the launcher of distributed training",
    )
    add("--cache_dir", metavar="DIR", help="where s3prl keeps the upstreams that it downloads")
    add("--verbose", action="store_true", help="print more about the model")
    add("--disable_cudnn", action="store_true", help="do without cuDNN")
    return flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags as given, `-d` as s3prl's name and `-c` set. Raises UserError; exits after --help. No torch needed."""
    flags = parser()
    options, unknown = flags.parse_known_args(list(argv))
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise UserError(f"there is no flag {flag!r}: {nearest(flag, flags._option_string_actions)}")
    if options.expdir is None and options.expname is not None:
        options.expdir = f"result/downstream/{options.expname}"
    _make_absolute(options)
    if options.auto_resume and options.expdir is None:
        raise UserError("-a needs the experiment's folder: say -p DIR")
    if options.auto_resume and latest_state(options.expdir):
        options.past_exp = options.expdir
    if options.feature_store and options.feature_store_gb <= 0:
        raise UserError(f"--feature-store-gb must be above 0, not {options.feature_store_gb}")
    if options.hub == "huggingface" or options.push_to_hf_hub:
        raise UserError("the Hugging Face Hub is not supported: leave --hub at torch and drop --push_to_hf_hub")
    if options.past_exp:
        if options.downstream in TASKS:
            options.downstream = TASKS[options.downstream].downstream
    elif options.downstream is None:
        raise UserError(f"say which task to run with -d: {', '.join(TASKS)}")
    else:
        options.downstream, options.config = _task_and_config(options.downstream, options.config)
    return options


def _task_and_config(name: str, config: str | None) -> tuple[str, str]:
    if name in TASKS:
        return TASKS[name].downstream, config or str(TASKS[name].config_file)
    of_this_name = [task for task in TASKS.values() if task.downstream == name]
    if config is None and len(of_this_name) > 1:
        raise UserError(
            f"-d {name} is several tasks: say -d {' or -d '.join(t.name for t in of_this_name)}, or give -c"
        )
    if config is None and of_this_name:
        return name, str(of_this_name[0].config_file)
    package = importlib.util.find_spec("s3prl")
    folders = (package.submodule_search_locations if package else None) or []
    names = {expert.parent.name for folder in folders for expert in Path(folder).glob("downstream/*/expert.py")}
    if name not in names:
        raise UserError(f"there is no task {name!r} (-d): {nearest(name, names | TASKS.keys())}")
    if config is None:
        raise UserError(f"-d {name} needs its configuration: -c FILE")
    return name, config


def resolve(options: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, Any], Task | None]:
    """The arguments and the configuration that s3prl gets, and the task they make.

    A new experiment reads its configuration file; one that goes on reads the checkpoint. Raises UserError for what is
    not there, for unknown keys, and for a corpus that lacks something.
    """
    args = argparse.Namespace(**{key: value for key, value in vars(options).items() if key not in OWN_FLAGS})
    if options.past_exp:
        args, config = _from_checkpoint(args)
        task = tasks.task_of(args.downstream, config)
        if options.corpora and task:
            moved = tasks.task_config(task.name, options.corpora)
            for key, value in dict(tasks.flat_keys(moved)).items():
                if key in tasks.path_keys(task):
                    tasks.set_key(config, key, value)
    else:
        config = tasks.read_config(args.config, options.corpora or os.environ.get("SUPERBIT_CORPORA"))
        task = tasks.task_of(args.downstream, config)
    if args.override and args.override.lower() != "none":
        override(args.override, args, config)
    if args.evaluate_split is None:
        args.evaluate_split = task.eval_split if task else "test"
    _choose_device(args)
    _make_absolute(args)
    _check(args, config, task)
    return args, config, task


def _make_absolute(args: argparse.Namespace) -> None:
    """The paths that the checkpoint keeps, as it is used from other folders. An absent upstream_ckpt may be a URL."""
    if args.expdir:
        args.expdir = str(Path(args.expdir).absolute())
    if args.upstream_ckpt and Path(args.upstream_ckpt).exists():
        args.upstream_ckpt = str(Path(args.upstream_ckpt).absolute())


def _from_checkpoint(given: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, Any]]:
    import torch

    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets torch load the checkpoints)

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
        kept, config = vars(checkpoint["Args"]), checkpoint["Config"]
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is no checkpoint of a downstream experiment: {reason}") from None

    kept = {key: value for key, value in kept.items() if key not in NOT_FROM_CHECKPOINT}
    defaults = vars(parser().parse_args(["-m", "train"]))
    for key in kept.keys() & vars(given).keys():
        value = getattr(given, key)
        if key not in ("config", "auto_resume") and value not in (defaults.get(key), kept[key]):
            print(f"[superbit] {key} is {kept[key]!r} as in {path}; -o args.{key}={value!r} would change it")
    args = argparse.Namespace(**{**vars(given), **kept})
    args.past_exp = args.init_ckpt = str(path)
    return args, config


def override(changes: str, args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Apply `-o`: `args.<flag>=<value>` and `config.<dotted key>=<value>`, separated by two commas.

    Values are Python or YAML literals, anything else is text. Raises UserError for what has another form or key.
    """
    for change in filter(None, (part.strip() for part in changes.split(",,"))):
        key, equals, text = (part.strip() for part in change.partition("="))
        target, _, name = key.partition(".")
        if not equals or target not in ("args", "config") or not name:
            raise UserError(f"-o takes args.<flag>=<value> and config.<key>=<value> separated by ',,', not {change!r}")
        value = _literal(text)
        if target == "config":
            tasks.set_key(config, name, value)
        elif name in vars(args):
            setattr(args, name, value)
        else:
            raise UserError(f"there is no argument {name!r} (-o): {nearest(name, vars(args))}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)  # true, null and lists of bare words
    except yaml.YAMLError:
        return text


def _choose_device(args: argparse.Namespace) -> None:
    import torch

    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(args.device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: torch sees no GPU here; use --device cpu")
    if args.backend is None:
        args.backend = "gloo" if args.device == "cpu" else "nccl"


def _check(args: argparse.Namespace, config: dict[str, Any], task: Task | None) -> None:
    """Raise UserError for what would otherwise fail, or go elsewhere, in the middle of the run."""
    if not args.expdir:
        raise UserError("say where the experiment is kept: -p DIR")
    if not args.upstream:
        raise UserError("say which upstream to use: -u NAME")
    if args.init_ckpt and not Path(args.init_ckpt).is_file():
        raise UserError(f"there is no checkpoint {args.init_ckpt} (-i)")
    if waiting := tasks.missing_root(config):
        raise UserError(
            f"{waiting} needs the folder of the corpora: say --corpora DIR, set SUPERBIT_CORPORA, "
            f"or give the path itself with -o config.{waiting}=PATH"
        )
    if args.mode == "inference":
        if task is not None and task.name != "asr":
            raise UserError(f"s3prl infers single files (-m inference) of asr only, not of {task.name}")
        if not Path(args.evaluate_split).is_file():
            raise UserError(f"there is no audio file {args.evaluate_split} to infer (-t)")
        return
    if task is None:
        return
    if args.mode == "train" and not task.has_head:
        raise UserError(
            f"{task.name} trains nothing: say -m evaluate -u NAME -l LAYER, with -t dev to find the best layer, "
            "and then -t test"
        )
    tasks.check_keys(task, config)
    check_config(task, config, [args.evaluate_split] if args.mode == "evaluate" else None)
