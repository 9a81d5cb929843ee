"""A matrix of upstreams x tasks x seeds: read it, check it, run the cells that are not done.

```yaml
upstreams:                # the table's rows, in order
  - fbank                 # a name of s3prl.hub, this project's among them
  - {label: mine, name: superbit_local, ckpt: runs/mine.safetensors}
tasks:                    # asr pr ks sid er ic sf; what is changed in the official configuration, by dotted keys
  ks: {runner.total_steps: 300, optimizer.lr: 1.0e-2}
  pr: {}
seeds: [1]
device: cpu               # cpu, cuda, or auto (the default: cuda where there is one)
feature_store_gb: 2       # memory a cell keeps its upstream's hidden states in; 0: compute them at every step
```
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runners import cells, engines
from runners.cells import Cell
from runners.tasks import TASKS, check_corpus, task_config
from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write

RECORD = "matrix.json"  # in the runs' folder: the order of rows and columns, for the report
DEVICES = ("auto", "cpu", "cuda")


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
    store_bytes: int


def evaluate(matrix: Path, corpora: Path, out: Path, seeds: list[int] | None, jobs: int, only: list[str]) -> int:
    """Run the cells of a matrix file that are not done yet; return how many failed.

    corpora: the folder that holds the corpora; out: the runs' folder, cells lie in
    `cells/<label>/<task>/seed<k>/`; seeds: instead of the matrix's; jobs: cells at a time, each in a process
    with one torch thread; only: patterns `label/task` (`*` allowed) of the cells to run, all when empty.
    Everything is checked before the first cell starts: raises UserError that names the file, key, name or
    missing corpus file and what would be right.
    """
    read = read_matrix(matrix)
    if jobs < 1:
        raise UserError(f"jobs must be 1 or more, not {jobs}")
    chosen = choose(read, only)
    todo = plan(read, chosen, corpora, out, read.seeds if seeds is None else seeds)
    _record(read, out, [cell.seed for cell in todo])
    return _run(todo, jobs)


def read_matrix(path: Path) -> Matrix:
    """The content of a matrix file; raises UserError on what is no matrix, with the nearest valid key or task."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no matrix file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    known = ("upstreams", "tasks", "seeds", "device", "feature_store_gb")
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
    gigabytes = content.get("feature_store_gb", 2)
    if not isinstance(gigabytes, int | float) or gigabytes < 0:
        raise UserError(f"{path}: feature_store_gb must be a number of 0 or more, not {gigabytes!r}")
    changed = {task: overrides or {} for task, overrides in tasks.items()}
    return Matrix(upstreams, changed, seeds, device, int(gigabytes * 2**30))


def choose(matrix: Matrix, only: list[str]) -> set[tuple[str, str]]:
    """The (label, task) pairs that any of the patterns `label/task` names, all without patterns."""
    labels = [upstream.label for upstream in matrix.upstreams]
    pairs = {f"{label}/{task}": (label, task) for task in matrix.tasks for label in labels}
    chosen = set() if only else set(pairs.values())
    for pattern in only:
        matches = fnmatch.filter(pairs, pattern)
        if not matches:
            raise UserError(f"no cell of the matrix is called {pattern!r}; {nearest(pattern, pairs)}")
        chosen |= {pairs[match] for match in matches}
    return chosen


def plan(matrix: Matrix, chosen: set[tuple[str, str]], corpora: Path, out: Path, seeds: list[int]) -> list[Cell]:
    """The chosen cells, tasks in the matrix's order, after a check of all that they need. Imports s3prl."""
    if not corpora.is_dir():
        raise UserError(f"there is no corpora folder {corpora}; `superbit corpus mini` builds one")
    corpora, out = corpora.absolute(), out.absolute()
    tasks = [task for task in matrix.tasks if any(task == name for _, name in chosen)]
    for task in tasks:
        check_corpus(task, corpora)
    configs = {task: task_config(task, corpora, matrix.tasks[task]) for task in tasks}
    device = _device(matrix.device)
    rows = [u for u in matrix.upstreams if any(u.label == label for label, _ in chosen)]
    checkpoints = _checkpoints(rows, tasks)
    return [
        Cell(
            label=upstream.label,
            upstream=upstream.name,
            checkpoint=checkpoints[upstream.label],
            task=task,
            seed=seed,
            config=configs[task],
            corpora=corpora,
            device=device,
            store_bytes=matrix.store_bytes,
            folder=out / "cells" / upstream.label / task / f"seed{seed}",
            identity=cells.identify(upstream.name, checkpoints[upstream.label], task, seed, configs[task], corpora),
        )
        for seed in dict.fromkeys(seeds)
        for task in tasks
        for upstream in rows
        if (upstream.label, task) in chosen
    ]


def _run(todo: list[Cell], jobs: int) -> int:
    """Run what is not done, with a progress line; return the number of failures."""
    console = Console()
    left = [cell for cell in todo if cells.finished(cell) is None]
    if len(left) < len(todo):
        console.print(f"{len(todo) - len(left)} of {len(todo)} cells are done already")
    for cell in left:
        cell.results_file.unlink(missing_ok=True)  # of another configuration: not for a report any more
    if not left:
        return 0
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn by hand: the thread that would draw it could hold a lock at the moment of a fork.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("cells", total=len(left))

        def watch(running: list[Cell]) -> None:
            names = ", ".join(cell.name for cell in running)
            progress.update(bar, description=names or "cells", refresh=True)

        ended = engines.local(left, cells.run_cell, lambda cell: cell.log_file, jobs, left[0].device, watch)
        for cell, reason in ended:
            results = cells.finished(cell)
            if reason is None and results is not None:
                said = f"{results['metric']} {results['value']:.4f} ({sum(results['seconds'].values()):.0f} s)"
                progress.console.print(f"{cell.name}: {said}", highlight=False)
            else:
                failed += 1
                why = f"failed: {reason or 'it left no results'} (see {cell.log_file})"
                progress.console.print(f"{cell.name} {why}", markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
            progress.refresh()
    if failed:
        console.print(f"{failed} of {len(left)} cells failed; the same command tries them again")
    return failed


def _checkpoints(upstreams: list[Upstream], tasks: Iterable[str]) -> dict[str, Path | None]:
    """Import what the cells need, once, for the processes that are forked; find each upstream's weights by label."""
    # Before anything computes: a pool of OpenMP threads in this process would hang its forks.
    import torch

    torch.set_num_threads(1)
    from upstreams import register, registry

    register()
    from s3prl import hub

    for module in ("runners.downstream", "s3prl.run_downstream"):
        importlib.import_module(module)
    for task in tasks:
        importlib.import_module(f"s3prl.downstream.{TASKS[task].downstream}.expert")
    names = [name for name in dir(hub) if not name.startswith("_")]
    for upstream in upstreams:
        if upstream.name not in names:
            raise UserError(f"there is no upstream {upstream.name!r}; {nearest(upstream.name, names)}")
    ours = registry.names()
    return {
        upstream.label: registry.checkpoint_path(upstream.name, upstream.checkpoint).absolute()
        if upstream.name in ours
        else upstream.checkpoint
        for upstream in upstreams
    }


def _record(matrix: Matrix, out: Path, seeds: list[int]) -> None:
    before = cells.read_json(out / RECORD) or {}
    record = {
        "upstreams": [upstream.label for upstream in matrix.upstreams],
        "tasks": list(matrix.tasks),
        "seeds": sorted({*before.get("seeds", []), *seeds}),
    }
    with atomic_write(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("the matrix asks for device cuda, and torch sees no GPU; set device: cpu or auto")
    return name


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
