"""A matrix of upstreams x tasks x learning rates x seeds, as its YAML file describes it.

```yaml
upstreams:                # the table's rows, in order
  - fbank                 # a name of s3prl.hub, this project's among them
  - {label: mine, name: superbit_local, ckpt: runs/mine.safetensors}
tasks:                    # asr pr ks sid er ic sf qbe asv sd; changes of the official configuration, by dotted keys
  ks: {runner.total_steps: 300, optimizer.lr: 1.0e-2}
  sid: {}
learning_rates:           # those that are tried, by task: the one that is best on dev is tested and reported
  sid: [1.0e-1, 1.0e-2, 1.0e-3]
seeds: [1]
device: cpu               # cpu, cuda, or auto (the default: cuda where there is one)
feature_store_gb: 32      # disk that the upstreams' hidden states may take; 0: compute them at every step
feature_store_dtype: fp16 # or int8, fp32
ray: {address: auto}      # for --engine ray: the cluster's address
slurm: {timeout_min: 600, slurm_partition: gpu}   # for --engine slurm: as submitit's update_parameters takes them
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runners.features.settings import DTYPES
from runners.tasks import TASKS
from upstreams.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda")
DEFAULT_STORE_GB = 32


@dataclass(frozen=True)
class Upstream:
    """A row of the matrix."""

    label: str
    name: str
    checkpoint: Path | None


@dataclass(frozen=True)
class Matrix:
    """A matrix file's content, checked as far as the file alone allows."""

    upstreams: list[Upstream]
    tasks: dict[str, dict[str, Any]]
    seeds: list[int]
    device: str
    learning_rates: dict[str, tuple[float, ...]] = field(default_factory=dict)  # by task
    store_bytes: int = DEFAULT_STORE_GB << 30
    store_dtype: str = "fp16"
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings, by engine


def read_matrix(path: Path) -> Matrix:
    """The content of a matrix file; raises UserError on what is no matrix, with the nearest valid key or task."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no matrix file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    known = (
        *("upstreams", "tasks", "learning_rates", "seeds", "device"),
        *("feature_store_gb", "feature_store_dtype", "ray", "slurm"),
    )
    content = _keys(content, known, required=("upstreams", "tasks", "seeds"), where=str(path))
    upstreams = [_upstream(entry, path) for entry in _list(content["upstreams"], f"{path}: upstreams")]
    labels = [upstream.label for upstream in upstreams]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise UserError(f"{path}: two upstreams are labelled {min(twice)!r}; give each its own `label`")
    tasks = content["tasks"]
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path}: tasks must map each task to the changes of its configuration, or to {{}}")
    for task, overrides in tasks.items():
        if task not in TASKS:
            raise UserError(f"{path}: there is no task {task!r}; {nearest(str(task), TASKS)}")
        if not isinstance(overrides or {}, dict):
            raise UserError(f"{path}: tasks.{task} must map dotted keys to values, not be {overrides!r}")
    seeds = _list(content["seeds"], f"{path}: seeds")
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds must be whole numbers of 0 or more, not {seeds}")
    device = content.get("device", "auto")
    if device not in DEVICES:
        raise UserError(f"{path}: there is no device {device!r}; {nearest(str(device), DEVICES)}")
    gigabytes = content.get("feature_store_gb", DEFAULT_STORE_GB)
    if not isinstance(gigabytes, int | float) or gigabytes < 0:
        raise UserError(f"{path}: feature_store_gb must be a number of 0 or more, not {gigabytes!r}")
    dtype = content.get("feature_store_dtype", "fp16")
    if dtype not in DTYPES:
        raise UserError(f"{path}: there is no feature_store_dtype {dtype!r}; {nearest(str(dtype), DTYPES)}")
    engines: dict[str, dict[str, Any]] = {name: content[name] for name in ("ray", "slurm") if name in content}
    for name, settings in engines.items():
        if not isinstance(settings, dict):
            raise UserError(f"{path}: {name} must map settings of the engine to values, not be {settings!r}")
    return Matrix(
        upstreams,
        {task: overrides or {} for task, overrides in tasks.items()},
        seeds,
        device,
        _learning_rates(content.get("learning_rates") or {}, tasks, path),
        int(gigabytes * 2**30),
        dtype,
        engines,
    )


def _learning_rates(content: Any, tasks: Iterable[str], path: Path) -> dict[str, tuple[float, ...]]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: learning_rates must map tasks to lists of learning rates, not be {content!r}")
    for task, rates in content.items():
        if task not in tasks:
            raise UserError(
                f"{path}: learning_rates names {task!r}, which is no task of it; {nearest(str(task), tasks)}"
            )
        if not TASKS[task].best:
            raise UserError(f"{path}: learning_rates names {task!r}, which has no dev set to choose one on")
        rates = _list(rates, f"{path}: learning_rates.{task}")
        # YAML 1.1 reads 1e-3 as text: 1.0e-3 is a number.
        if not all(isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0 for rate in rates):
            raise UserError(f"{path}: learning_rates.{task} must be numbers above 0 such as 1.0e-3, not {rates}")
        if len({f"{rate:g}" for rate in rates}) < len(rates):
            raise UserError(f"{path}: learning_rates.{task} names a learning rate twice: {rates}")
    return {task: tuple(float(rate) for rate in rates) for task, rates in content.items()}


def _upstream(entry: object, path: Path) -> Upstream:
    if isinstance(entry, str):
        entry = {"name": entry}
    content = _keys(entry, ("name", "label", "ckpt"), required=("name",), where=f"{path}: an upstream")
    for key, value in content.items():
        if not isinstance(value, str) or not value:
            raise UserError(f"{path}: an upstream's {key} must be text, not {value!r}")
    label = content.get("label", content["name"])
    if label.startswith(".") or "/" in label or os.sep in label:
        raise UserError(f"{path}: the label {label!r} cannot name a folder; set another `label`")
    checkpoint = Path(content["ckpt"]).absolute() if "ckpt" in content else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(f"{path}: the checkpoint {checkpoint} of upstream {label!r} does not exist")
    return Upstream(label, content["name"], checkpoint)


def _keys(content: object, known: Iterable[str], required: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a mapping with the keys {', '.join(required)}")
    for key in content:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}; {nearest(str(key), known)}")
    for key in required:
        if key not in content:
            raise UserError(f"{where} lacks the key {key!r}")
    return content


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a list with one entry or more, not {value!r}")
    return value
