"""Tries a configuration out: builds the optimizer, scheduler, SpecAugment and head that s3prl would build later.

s3prl looks names up and passes settings on as keyword arguments when it needs them, some after hours. What it would do
then is done here first, on two weights or without memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from runners.tasks import Task
from upstreams.errors import UserError, nearest
from upstreams.s3prl import compat  # noqa: F401  (makes s3prl importable)

Settings = Mapping[str, Any]


def try_values(task: Task | None, config: Settings) -> None:
    """Raise UserError, naming the section or the key, for settings with which s3prl would fail."""
    if task is None or task.has_head:
        with _section("optimizer"):
            optimizer = _optimizer(config)
        if config.get("scheduler"):
            with _section("scheduler"):
                _scheduler(config, optimizer)
    if config.get("specaug"):
        with _section("specaug"):
            _augment(config["specaug"])
    # The check of the corpora names a missing package.
    if task is not None and all(importlib.util.find_spec(package) for package in task.packages):
        with _section("downstream_expert"), torch.device("meta"):
            _HEADS[task.downstream](config["downstream_expert"], task)


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Turn any error inside the block into a UserError that names the section; leave random numbers as they were."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"the key {error} is missing"
        raise UserError(f"s3prl cannot use the section {name}: {reason}") from None


def _optimizer(config: Settings) -> Any:
    """Build the optimizer for a layer, and take a step."""
    from s3prl import optimizers

    settings = config["optimizer"]
    name = _known("optimizer.name", settings["name"], _getters(optimizers))
    if name == "TorchOptim":
        classes = {key for key, value in vars(torch.optim).items() if _is_optimizer(value)}
        _known("optimizer.torch_optim_name", settings["torch_optim_name"], classes)
    else:
        _refuse_ignored(settings, inspect.signature(getattr(optimizers, f"get_{name}")))
    layer = nn.Linear(1, 1)
    optimizer = optimizers.get_optimizer([layer], config["runner"]["total_steps"], settings)
    layer(torch.ones(1)).backward()
    optimizer.step()
    return optimizer


def _refuse_ignored(settings: Settings, signature: inspect.Signature) -> None:
    """Raise UserError for settings that one of s3prl's own optimizers takes and does not use."""
    used = signature.parameters.keys() | {"name", "torch_optim_name"}  # the latter is in the official configurations
    if settings["name"] not in ("AdamW_with_schedule", "Lamb_with_schedule"):  # these pass all on
        for key in settings.keys() - used:
            raise UserError(f"optimizer.{key} has no effect on the optimizer {settings['name']}: use TorchOptim")


def _scheduler(config: Settings, optimizer: Any) -> None:
    from s3prl import schedulers

    settings = config["scheduler"]
    _known("scheduler.name", settings["name"], _getters(schedulers))
    schedulers.get_scheduler(optimizer, config["runner"]["total_steps"], settings).step()


def _augment(settings: Settings) -> None:
    from s3prl.downstream.specaug import SpecAug

    SpecAug(**settings)([torch.zeros(200, 80)])


def _getters(module: Any) -> set[str]:
    """Return the names that s3prl looks up in a module as `get_<name>`."""
    found = {key.removeprefix("get_") for key in vars(module) if key.startswith("get_")}
    return found - {"optimizer", "scheduler", "grouped_parameters"}


def _is_optimizer(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def _known(key: str, name: Any, names: set[str]) -> str:
    if name not in names:
        raise UserError(f"there is no {key} {name!r}: {nearest(str(name), names)}")
    return str(name)


def _layers(module: Any) -> set[str]:
    return {key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)}


def _classifier(expert: Settings, task: Task) -> None:
    module = importlib.import_module(f"s3prl.downstream.{task.downstream}.expert")
    settings = expert["modelrc"]
    select = _known("downstream_expert.modelrc.select", settings["select"], _layers(module))
    getattr(module, select)(input_dim=settings["projector_dim"], output_dim=2, **settings.get(select, {}))


def _asr(expert: Settings, task: Task) -> None:
    from s3prl.downstream.asr import expert as module

    settings = expert["modelrc"]
    select = _known("downstream_expert.modelrc.select", settings["select"], _layers(module))
    getattr(module, select)(settings["project_dim"], 2, 320, **settings[select])


def _ctc(expert: Settings, task: Task) -> None:
    from s3prl.downstream.ctc import expert as module

    settings = expert["model"]
    select = _known("downstream_expert.model.select", settings["select"], _layers(module))
    getattr(module, select)(settings["project_dim"], 2, upstream_rate=320, **settings.get(select, {}))
    metrics = {name for name, value in vars(module).items() if getattr(value, "__module__", "").endswith(".metric")}
    for metric in expert["metric"]:
        _known("downstream_expert.metric", metric, metrics)


def _verification(expert: Settings, task: Task) -> None:
    from s3prl.downstream.sv_voxceleb1 import expert as module

    settings = expert["modelrc"]
    hparams = settings["module_config"][settings["module"]]
    module.Model(
        input_dim=settings["input_dim"],
        agg_dim=hparams.get("agg_dim", settings["input_dim"]),
        agg_module_name=settings["agg_module"],
        module_name=settings["module"],
        hparams=hparams,
        utterance_module_name=settings["utter_module"],
    )
    loss = _known("downstream_expert.modelrc.ObjectiveLoss", settings["ObjectiveLoss"], _layers(module))
    getattr(module, loss)(speaker_num=2, hidden_dim=settings["input_dim"], **settings["LossConfig"][loss])


def _diarization(expert: Settings, task: Task) -> None:
    from s3prl.downstream.diarization.model import Model

    Model(input_dim=2, output_class_num=expert["datarc"]["num_speakers"], **expert["modelrc"])


def _query_by_example(expert: Settings, task: Task) -> None:
    """Match two sequences by the configured distance and steps."""
    import dtw
    import numpy as np
    from s3prl.downstream.quesst14_dtw.expert import DownstreamExpert
    from scipy.spatial import distance

    DownstreamExpert(upstream_dim=2, downstream_expert=expert, expdir=".")
    settings, frames = expert["dtwrc"], np.ones((2, 2))
    if settings["dist_method"] not in ("cosine_exp", "cosine_neg_log"):
        distance.cdist(frames, frames, metric=settings["dist_method"])
    dtw.dtw(frames, step_pattern=settings["step_pattern"], open_begin=settings["subsequence"], open_end=True)


_HEADS: dict[str, Callable[[Settings, Task], None]] = {
    "speech_commands": _classifier,
    "voxceleb1": _classifier,
    "emotion": _classifier,
    "fluent_commands": _classifier,
    "asr": _asr,
    "ctc": _ctc,
    "sv_voxceleb1": _verification,
    "diarization": _diarization,
    "quesst14_dtw": _query_by_example,
}
