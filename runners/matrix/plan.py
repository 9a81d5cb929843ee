"""The cells that a run of a matrix consists of, planned after a check of everything that they need."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from runners.corpora.check import check_config
from runners.features.settings import StoreSettings
from runners.matrix.cell import Cell, Training, finished, trained
from runners.matrix.file import Matrix, Upstream
from runners.tasks import TASKS, task_configs
from upstreams.errors import UserError, nearest
from upstreams.files import sha256
from upstreams.versions import versions


def plan(
    matrix: Matrix, *, corpora: Path, out: Path, seeds: Sequence[int], only: Sequence[str], store: StoreSettings | None
) -> list[Cell]:
    """Return the cells of a matrix, seed by seed, task by task in the matrix's order, after a check of what they need.

    only: patterns LABEL/TASK with `*` as a wildcard; empty: all cells. Imports s3prl. Raises UserError that names the
    key, the name or the missing file of the corpora, and what would be valid.
    """
    chosen = _chosen(matrix, only)
    if not corpora.is_dir():
        raise UserError(f"there is no corpora folder {corpora}; `superbit corpus mini` builds one")
    corpora, out = corpora.absolute(), out.absolute()
    tasks = [task for task in matrix.tasks if any(task == name for _, name in chosen)]
    configs = {task: tuple(task_configs(task, corpora, matrix.tasks[task])) for task in tasks}
    for task in tasks:
        for config in configs[task]:
            check_config(TASKS[task], config)
    device = _device(matrix.device)
    upstreams = [upstream for upstream in matrix.upstreams if any(upstream.label == label for label, _ in chosen)]
    checkpoints = _checkpoints(upstreams, tasks)
    digests = {label: sha256(checkpoint) if checkpoint else None for label, checkpoint in checkpoints.items()}
    corpus, version = corpora / "corpus.json", versions()["superbit"]
    corpus_sha256 = sha256(corpus) if corpus.exists() else None
    return [
        Cell(
            label=upstream.label,
            upstream=upstream.name,
            checkpoint=checkpoints[upstream.label],
            checkpoint_sha256=digests[upstream.label],
            task=task,
            seed=seed,
            configs=configs[task],
            learning_rates=matrix.learning_rates.get(task, ()),
            corpora=corpora,
            corpus_sha256=corpus_sha256,
            version=version,
            device=device,
            store=store,
            folder=out / "cells" / upstream.label / task / f"seed{seed}",
        )
        for seed in dict.fromkeys(seeds)
        for task in tasks
        for upstream in upstreams
        if (upstream.label, task) in chosen
    ]


def trainings_to_run(cells: Iterable[Cell]) -> list[Training]:
    """Return the trainings that are not done, and the first training of each fold that only lacks its test."""
    left = []
    for fold in (fold for cell in cells for fold in cell.folds):
        if finished(fold) is None:
            untrained = [training for training in fold.trainings if trained(training) is None]
            left += untrained or fold.trainings[:1]
    return left


def _chosen(matrix: Matrix, only: Sequence[str]) -> set[tuple[str, str]]:
    """Return the (label, task) pairs that one of the patterns LABEL/TASK matches; without patterns, all pairs."""
    labels = [upstream.label for upstream in matrix.upstreams]
    pairs = {f"{label}/{task}": (label, task) for task in matrix.tasks for label in labels}
    chosen = set() if only else set(pairs.values())
    for pattern in only:
        matches = fnmatch.filter(pairs, pattern)
        if not matches:
            raise UserError(f"no cell of the matrix is called {pattern!r}; {nearest(pattern, pairs)}")
        chosen |= {pairs[match] for match in matches}
    return chosen


def _checkpoints(upstreams: Sequence[Upstream], tasks: Iterable[str]) -> dict[str, Path | None]:
    """Return the weights file of each upstream by its label, after a check of its name.

    Also imports what the trainings need, once, for the processes that are forked from this one.
    """
    # Before anything computes: a pool of OpenMP threads in this process would block its forks.
    import torch

    torch.set_num_threads(1)
    from upstreams import register, registry

    register()
    from s3prl import hub

    for module in ("runners.downstream.run", "runners.downstream.experiment"):
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


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("the matrix asks for device cuda, but torch sees no GPU; set device: cpu or auto")
    return name
