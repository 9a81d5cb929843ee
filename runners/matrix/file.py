"""A matrix: upstreams x tasks x learning rates x seeds, read from its YAML file.

```yaml
base: superb_mini         # a packaged matrix, whose values stand for those that are missing here
upstreams:                # rows of the table, in order
  - fbank                 # a name in s3prl.hub, which includes this project's names
  - {label: mine, name: superbit_local, ckpt: runs/mine.safetensors}
  - {label: one_step, name: conformer_mini_w1a1, recipe: my.yaml, schedule: []}   # how `training` makes its checkpoint
training: {}              # make the checkpoints that rows need: runners/matrix/training_plan.py
tasks:                    # asr pr ks sid er ic sf qbe asv sd; changes to the official configuration, by dotted keys
  ks: {runner.total_steps: 300, optimizer.lr: 1.0e-2}
  sid: {}
learning_rates:           # trials by task: the learning rate that is best on dev is tested and reported
  sid: [1.0e-1, 1.0e-2, 1.0e-3]
seeds: [1]
device: cpu               # cpu, cuda, or auto (default: cuda if there is a GPU)
feature_store_gb: 32      # largest size of the stored hidden states in GB; 0: compute them at every step
feature_store_dtype: fp16 # or int8, fp32
upstream_modules: [my.package]   # Python modules that put other upstreams into s3prl.hub
ray: {address: auto}      # for --engine ray: address of the cluster
slurm: {timeout_min: 600, slurm_partition: gpu}   # for --engine slurm: arguments of submitit's update_parameters
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from runners.features.settings import DTYPES
from runners.matrix.training_plan import TrainingPlan, check_schedule, read_training_plan
from runners.tasks import TASKS, task_configs
from upstreams.errors import UserError, nearest, shown
from upstreams.files import parse_yaml, read_text

DEVICES = ("auto", "cpu", "cuda")
DEFAULT_STORE_GB = 32
REQUIRED = ("upstreams", "tasks", "seeds")
OPTIONAL = (
    *("training", "learning_rates", "device", "feature_store_gb", "feature_store_dtype", "upstream_modules"),
    *("ray", "slurm"),
)
OF_TRAINING = ("recipe", "schedule", "manifest")  # keys of an upstream whose checkpoint the matrix makes


@dataclass(frozen=True)
class Upstream:
    """A row of the table."""

    label: str
    name: str  # in s3prl.hub
    checkpoint: Path | None
    recipe: str | None = None  # of the pre-training; None: the one of the model's name
    schedule: tuple[str, ...] | None = None  # bit widths before the final ones; None: as `training` says
    manifest: str | None = None  # of the training audio; None: as `training` says


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Content of a matrix file, checked as far as the file alone allows."""

    upstreams: list[Upstream]
    tasks: dict[str, dict[str, Any]]
    seeds: list[int]
    device: str
    training: TrainingPlan | None = None  # None: all checkpoints must exist
    learning_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)  # by task
    store_bytes: int = DEFAULT_STORE_GB << 30
    store_dtype: str = "fp16"
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings by engine
    upstream_modules: tuple[str, ...] = ()


def matrix_names() -> list[str]:
    """Return the names of the packaged matrices, sorted."""
    files = (resources.files("runners.matrix") / "matrices").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_matrix(matrix: str | Path, changes: Sequence[str] = ()) -> Matrix:
    """Read a packaged matrix by its name, or a YAML file by its path.

    changes: KEY=VALUE with dotted keys, such as training.processes=4, change its values. Raises UserError, with the
    closest valid name, if there is no such matrix or if its content is not valid.
    """
    where = f"matrix {matrix}"
    content = _changed(_with_base(parse_yaml(_text(str(matrix)), where), where), changes)
    content = _mapping(content, known=(*REQUIRED, *OPTIONAL), required=REQUIRED, where=where)
    tasks = _tasks(content["tasks"], where)
    gigabytes = content.get("feature_store_gb", DEFAULT_STORE_GB)
    if not isinstance(gigabytes, int | float) or gigabytes < 0:
        raise UserError(f"{where}: feature_store_gb must be a number of 0 or more, not {shown(gigabytes)}")
    seeds = _list(content["seeds"], f"{where}: seeds")
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(f"{where}: seeds must be whole numbers of 0 or more, not {shown(seeds)}")
    engines: dict[str, dict[str, Any]] = {name: content[name] for name in ("ray", "slurm") if name in content}
    for name, settings in engines.items():
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {name} must map settings of the engine to values, not be {shown(settings)}")
    return Matrix(
        upstreams=_upstreams(content["upstreams"], "training" in content, where),
        tasks=tasks,
        seeds=seeds,
        device=_choice(content, key="device", default="auto", choices=DEVICES, where=where),
        training=read_training_plan(content["training"] or {}, where) if "training" in content else None,
        learning_rates=_learning_rates(content.get("learning_rates") or {}, tasks, where),
        store_bytes=int(gigabytes * 2**30),
        store_dtype=_choice(content, key="feature_store_dtype", default="fp16", choices=DTYPES, where=where),
        engines=engines,
        upstream_modules=_upstream_modules(content.get("upstream_modules") or [], where),
    )


def _with_base(content: Any, where: str) -> Any:
    """Return the content of a matrix file over that of its `base`: keys of the file replace those of the base."""
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    if base not in matrix_names():
        raise UserError(
            f"{where}: base is {shown(base)}, which is no packaged matrix; {nearest(str(base), matrix_names())}"
        )
    return _with_base(parse_yaml(_text(base), f"matrix {base}"), f"matrix {base}") | content


def _changed(content: Any, changes: Iterable[str]) -> Any:
    """Apply changes KEY=VALUE. Below a task, training.pretrain and training.quantize, keys have dots themselves."""
    for setting in changes:
        key, equals, value = setting.partition("=")
        path = key.split(".")
        if path[0] == "tasks" or path[:2] in (["training", "pretrain"], ["training", "quantize"]):
            path = [*path[:2], *filter(None, [".".join(path[2:])])]
        if not equals or not all(path):
            raise UserError(f"--set {setting} is not KEY=VALUE, such as training.processes=4 or device=cpu")
        place = content
        for part in path[:-1]:
            if not isinstance(place, dict) or not isinstance(place.get(part) or {}, dict):
                raise UserError(f"--set {setting}: the matrix has no mapping at {part!r}")
            place[part] = place.get(part) or {}
            place = place[part]
        place[path[-1]] = parse_yaml(value, f"--set {setting}")
    return content


def _text(matrix: str) -> str:
    if matrix in matrix_names():
        return (resources.files("runners.matrix") / "matrices" / f"{matrix}.yaml").read_text(encoding="utf-8")
    path = Path(matrix)
    if not path.is_file():
        raise UserError(f"no matrix or file is called {matrix!r}; {nearest(path.stem, matrix_names())}")
    return read_text(path)


def _tasks(content: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: tasks must map each task to the changes to its configuration, or to {{}}")
    for task, overrides in content.items():
        if task not in TASKS:
            raise UserError(f"{where}: there is no task {shown(task)}; {nearest(str(task), TASKS)}")
        if not isinstance(overrides or {}, dict):
            raise UserError(f"{where}: tasks.{task} must map dotted keys to values, not be {shown(overrides)}")
        try:
            task_configs(task, "/", overrides or {})
        except UserError as error:
            raise UserError(f"{where}: tasks.{task}: {error}") from None
    return {task: overrides or {} for task, overrides in content.items()}


def _learning_rates(content: Any, tasks: Iterable[str], where: str) -> dict[str, tuple[float, ...]]:
    if not isinstance(content, dict):
        raise UserError(f"{where}: learning_rates must map tasks to lists of learning rates, not be {shown(content)}")
    for task, rates in content.items():
        if task not in tasks:
            raise UserError(
                f"{where}: learning_rates names {shown(task)}, which is not one of its tasks; "
                f"{nearest(str(task), tasks)}"
            )
        if not TASKS[task].best:
            raise UserError(f"{where}: learning_rates names {shown(task)}, which has no dev set to choose one on")
        rates = _list(rates, f"{where}: learning_rates.{task}")
        # YAML 1.1 reads 1e-3 as text: 1.0e-3 is a number.
        if not all(isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0 for rate in rates):
            raise UserError(
                f"{where}: learning_rates.{task} must be numbers above 0 such as 1.0e-3, not {shown(rates)}"
            )
        if len({f"{rate:g}" for rate in rates}) < len(rates):
            raise UserError(f"{where}: learning_rates.{task} names a learning rate twice: {shown(rates)}")
    return {task: tuple(float(rate) for rate in rates) for task, rates in content.items()}


def _upstream_modules(content: Any, where: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
        raise UserError(f"{where}: upstream_modules must be a list of names of Python modules, not {shown(content)}")
    return tuple(content)


def _upstreams(content: object, trains: bool, where: str) -> list[Upstream]:
    upstreams = [_upstream(entry, trains, where) for entry in _list(content, f"{where}: upstreams")]
    labels = [upstream.label for upstream in upstreams]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"{where}: two upstreams have the label {shown(min(twice))}; give each its own `label`")
    return upstreams


def _upstream(entry: object, trains: bool, where: str) -> Upstream:
    if isinstance(entry, str):
        entry = {"name": entry}
    known = ("name", "label", "ckpt", *OF_TRAINING)
    content = _mapping(entry, known=known, required=("name",), where=f"{where}: an upstream")
    for key, value in content.items():
        if key in OF_TRAINING and (not trains or "ckpt" in content):
            raise UserError(f"{where}: {key} of an upstream needs the matrix's key `training`, and no ckpt")
        if key != "schedule" and (not isinstance(value, str) or not value):
            raise UserError(f"{where}: {key} of an upstream must be text, not {shown(value)}")
    label = content.get("label", content["name"])
    if label.startswith(".") or "/" in label or os.sep in label:
        raise UserError(f"{where}: the label {shown(label)} cannot name a folder; set another `label`")
    checkpoint = Path(content["ckpt"]).absolute() if "ckpt" in content else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(f"{where}: the checkpoint {checkpoint} of upstream {shown(label)} does not exist")
    schedule = content.get("schedule")
    return Upstream(
        label,
        content["name"],
        checkpoint,
        recipe=content.get("recipe"),
        schedule=None if schedule is None else check_schedule(schedule, f"{where}: schedule of {shown(label)}"),
        manifest=content.get("manifest"),
    )


def _choice(content: dict[str, Any], *, key: str, default: str, choices: Iterable[str], where: str) -> str:
    value = content.get(key, default)
    if value not in choices:
        raise UserError(f"{where}: there is no {key} {shown(value)}; {nearest(str(value), choices)}")
    return str(value)


def _mapping(content: object, *, known: Iterable[str], required: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a mapping with the keys {', '.join(required)}")
    for key in content:
        if key not in known:
            raise UserError(f"{where} has an unknown key {shown(key)}; {nearest(str(key), known)}")
    for key in required:
        if key not in content:
            raise UserError(f"{where} lacks the key {shown(key)}")
    return content


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list with one entry or more, not {shown(value)}")
    return value
