"""Checks the values of a task's configuration: kinds, ranges and names that s3prl would only read during training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from runners import tasks
from runners.downstream.trials import try_values
from runners.tasks import FOLD, FOLDS, Task
from upstreams.errors import UserError, nearest, shown


class Numbers(NamedTuple):
    """A set of numbers, and its name in messages."""

    name: str
    contains: Callable[[float], bool]


COUNT = Numbers("a whole number of 1 or more", lambda x: isinstance(x, int) and x >= 1)
WHOLE = Numbers("a whole number of 0 or more", lambda x: isinstance(x, int) and x >= 0)
RATE = Numbers("-1 or a whole number of 1 or more", lambda x: isinstance(x, int) and (x == -1 or x >= 1))
POSITIVE = Numbers("a number above 0", lambda x: 0 < x < math.inf)
NO_LIMIT = Numbers("a number above 0", lambda x: x > 0)  # infinity switches a limit off
NOT_NEGATIVE = Numbers("a number of 0 or more", lambda x: 0 <= x < math.inf)
FRACTION = Numbers("a number from 0 to 1", lambda x: 0 <= x <= 1)
PART = Numbers("a number above 0 and below 1", lambda x: 0 < x < 1)
UP_TO_ALL = Numbers("a number above 0 and up to 1", lambda x: 0 < x <= 1)
DECAY = Numbers("a number of 0 or more and below 1", lambda x: 0 <= x < 1)
ANY = Numbers("a number", lambda x: not math.isnan(x))

# Numbers that a key may have, by the last part of the key; those of a list hold for its items.
ALLOWED = {
    key: numbers
    for numbers, keys in (
        (
            COUNT,
            "total_steps gradient_accumulate_steps log_step eval_step save_step max_keep batch_size train_batch_size "
            "eval_batch_size train_batchsize eval_batchsize project_dim projector_dim hidden_dim hidden_size "
            "input_dim agg_dim dim kernel_size sample_rate chunk_size subsampling num_speakers rate "
            "frame_shift max_timestep max_workers nbest beam num_freq_mask num_time_mask time_warp_window",
        ),
        (
            WHOLE,
            "num_workers rnn_layers label_delay padding min_sec max_n_time_masks num_warmup_steps "
            "time_mask_width_range freq_mask_width_range",
        ),
        (RATE, "total_rate"),
        (POSITIVE, "lr"),
        (NO_LIMIT, "gradient_clipping"),
        (NOT_NEGATIVE, "weight_decay eps momentum"),
        (DECAY, "betas"),
        (FRACTION, "dropout dropout_p adaptive_number_ratio adaptive_size_ratio"),
        (PART, "valid_ratio"),
        (UP_TO_ALL, "evaluate_ratio"),
    )
    for key in keys.split()
}

# Kinds of the optional keys, by an example; other keys have examples in the official configurations.
OPTIONAL_EXAMPLES: dict[str, Any] = {
    "runner.fp16": False,
    "runner.evaluate_ratio": 1.0,
    "runner.train_dataloader": "train",
    "optimizer.weight_decay": 0.01,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.amsgrad": False,
    "optimizer.momentum": 0.9,
    "scheduler.name": "linear_schedule_with_warmup",
    "scheduler.num_warmup_steps": 1000,
}
MAY_BE_NULL = ("specaug", "scheduler", FOLD)


def check_values(task: Task | None, config: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError for a value that s3prl cannot use or would ignore, naming the task, the key and what is valid.

    task: None for a downstream of s3prl that is not a SUPERB task, of which only the common sections are checked.
    where: ends the message, such as " (in FILE)". Imports torch and s3prl.
    """
    name = task.name if task else "the task"
    try:
        official = dict(tasks.flat_keys(tasks.read_config(task.config_file, None))) if task else {}
        for key, value in tasks.flat_keys(config):
            _check_value(key, value, official.get(key, OPTIONAL_EXAMPLES.get(key)))
        _check_keys(config, official)
        _check_relations(config, task)
        try_values(task, config)
    except UserError as error:
        raise UserError(f"{name}: {error}{where}") from None


def _check_value(key: str, value: Any, example: Any) -> None:
    """Check the kind of a value by that of `example` (None: any kind), and its range."""
    if value is None:
        if example is not None and key not in MAY_BE_NULL:
            raise UserError(f"{key} must be {tasks.kind(example)}, such as {example!r}, but has no value")
        return
    numbers = ALLOWED.get(key.rpartition(".")[2])
    if example is None and numbers is None:
        return
    items = value if isinstance(value, list | tuple) else [value]
    if example is not None:
        tasks.check_kind(key, value, example)
        if isinstance(value, list | tuple) and isinstance(example, list) and example:
            for item in items:
                tasks.check_kind(f"{key}, a list,", item, example[0])
    for item in items:
        if isinstance(item, bool | str | Mapping) or item is None:
            continue
        if not (numbers or ANY).contains(item):
            raise UserError(f"{key} must be {(numbers or ANY).name}, not {shown(item)}")


def _check_keys(config: Mapping[str, Any], official: Mapping[str, Any]) -> None:
    """Raise UserError for a key that s3prl would ignore, and for what looks like a misspelt official key."""
    found = dict(tasks.flat_keys(config))
    known = {*official, *tasks.OPTIONAL_KEYS}
    for key in found:
        section = key.partition(".")[0]
        if key in known or section in ("optimizer", "scheduler", "specaug"):  # tried out
            continue
        if section in ("runner", key):
            raise UserError(f"s3prl has no key {shown(key)}: {nearest(key, known)}")
        folder = key.rpartition(".")[0]
        lacking = [name for name in official if name.rpartition(".")[0] == folder and name not in found]
        if similar := difflib.get_close_matches(key, lacking, n=1, cutoff=0.85):
            raise UserError(f"there is no key {key!r}: did you mean {similar[0]!r}?")


def _check_relations(config: Mapping[str, Any], task: Task | None) -> None:
    """Check values that depend on one another."""
    if task is None or task.has_head:
        runner = config["runner"]
        total, save, evaluate = runner["total_steps"], runner["save_step"], runner["eval_step"]
        evaluates = (task is None or bool(task.best)) and bool(runner["eval_dataloaders"])
        if save > total and not (evaluates and evaluate <= total):
            raise UserError(f"runner.save_step {save} is more than runner.total_steps {total}: nothing would be saved")
    fold = dict(tasks.flat_keys(config)).get(FOLD)
    if task is not None and task.name == "er" and fold is not None and fold not in FOLDS:
        raise UserError(f"there is no {FOLD} {shown(fold)}: {nearest(str(fold), FOLDS)}")
    for key, section in tasks.flat_keys(config):
        if key.endswith(".RNNs") and len({len(value) for value in section.values() if isinstance(value, list)}) > 1:
            raise UserError(f"the lists of {key} must have one entry for each layer, as many as dim: {section}")
        if key.endswith("_width_range") and not (
            isinstance(section, list) and len(section) == 2 and section[0] < section[1]
        ):
            raise UserError(f"{key} must be two numbers, the second above the first, not {shown(section)}")
