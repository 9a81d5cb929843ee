"""The cells that a run of a matrix consists of, with their identities.

Planning imports neither torch nor s3prl, so that a finished matrix answers at once. runners.matrix.check checks what is
to run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check import check_config
from runners.corpora.contents import contents
from runners.corpora.embedded import described_tasks
from runners.features.settings import StoreSettings
from runners.matrix.cell import Cell, Training, finished, trained
from runners.matrix.file import Matrix, Upstream
from runners.matrix.identity import origin
from runners.tasks import TASKS, task_configs
from upstreams import plugins, registry
from upstreams.errors import UserError, nearest
from upstreams.files import sha256


def plan(
    matrix: Matrix,
    *,
    corpora: Path,
    out: Path,
    seeds: Sequence[int],
    only: Sequence[str],
    store: StoreSettings | None,
    rerun_stale: bool,
) -> list[Cell]:
    """Return the cells of a matrix, seed by seed, task by task in the matrix's order.

    only: patterns LABEL/TASK with `*` as a wildcard; empty: all cells. Raises UserError that names the key, the missing
    checkpoint or the missing file of the corpora, and what would be valid.
    """
    chosen = _chosen(matrix, only)
    if not corpora.is_dir():
        raise UserError(f"there is no corpora folder {corpora}; `superbit corpus mini` builds one")
    corpora, out = corpora.absolute(), out.absolute()
    tasks = [task for task in matrix.tasks if any(task == name for _, name in chosen)]
    configs = {task: tuple(task_configs(task, corpora, matrix.tasks[task])) for task in tasks}
    described = described_tasks(corpora)
    found = {task: tuple(_contents(task, config, described) for config in configs[task]) for task in tasks}
    upstreams = [upstream for upstream in matrix.upstreams if any(upstream.label == label for label, _ in chosen)]
    checkpoints = {upstream.label: _checkpoint(upstream) for upstream in upstreams}
    modules = {upstream.label: _modules(upstream, matrix) for upstream in upstreams}
    digests = {label: sha256(checkpoint) if checkpoint else None for label, checkpoint in checkpoints.items()}
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
            contents=found[task],
            **origin(*modules[upstream.label]),
            upstream_modules=modules[upstream.label],
            device=matrix.device,
            store=store,
            folder=out / "cells" / upstream.label / task / f"seed{seed}",
            rerun_stale=rerun_stale,
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
        # A label may hold characters that have a meaning in a pattern.
        matches = [pattern] if pattern in pairs else fnmatch.filter(pairs, pattern)
        if not matches:
            raise UserError(f"no cell of the matrix is called {pattern!r}; {nearest(pattern, pairs)}")
        chosen |= {pairs[match] for match in matches}
    return chosen


def _contents(task: str, config: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return contents(TASKS[task], config, described.get(task))
    except (OSError, ValueError, LookupError, TypeError) as error:
        check_config(TASKS[task], config)  # says what is missing
        raise UserError(f"the corpus of {task} cannot be read ({type(error).__name__}: {error})") from None


def _modules(upstream: Upstream, matrix: Matrix) -> tuple[str, ...]:
    """Return the modules that an upstream may be from; none for the names of this project and of s3prl."""
    known = upstream.name in registry.names() or upstream.name in plugins.s3prl_names()
    return () if known else matrix.upstream_modules


def _checkpoint(upstream: Upstream) -> Path | None:
    """Return the weights file of an upstream; None for a name of s3prl without one."""
    if upstream.name in registry.names():
        return registry.checkpoint_path(upstream.name, upstream.checkpoint).absolute()
    return upstream.checkpoint
