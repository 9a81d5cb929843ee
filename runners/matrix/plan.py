"""The cells that a run of a matrix consists of, with their identities.

Planning imports neither torch nor s3prl, so that a finished matrix answers at once. runners.matrix.check checks what is
to run.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.check import check_config
from runners.corpora.contents import contents
from runners.corpora.embedded import described_tasks
from runners.features.settings import StoreSettings
from runners.matrix.cell import Cell, Training, finished, trained
from runners.matrix.command import Command
from runners.matrix.file import Matrix, Upstream
from runners.matrix.identity import origin
from runners.tasks import TASKS, task_configs
from upstreams import plugins, registry
from upstreams.errors import UserError, nearest
from upstreams.files import sha256


@dataclass(frozen=True)
class Source:
    """The checkpoint of a row and a seed: its digest, or the command that makes it while it is not done."""

    checkpoint: Path | None
    sha256: str | None
    needs: tuple[str, ...]


def plan(
    matrix: Matrix,
    *,
    corpora: Path,
    out: Path,
    seeds: Sequence[int],
    only: Sequence[str],
    store: StoreSettings | None,
    rerun_stale: bool,
) -> tuple[list[Cell], list[Command]]:
    """Return the cells of a matrix, seed by seed, task by task in the matrix's order, and the commands that they need.

    only: patterns LABEL/TASK with `*` as a wildcard; empty: all cells. The commands are those that are not done. Raises
    UserError that names the key, the missing checkpoint or the missing file of the corpora, and what would be valid.
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
    seeds = list(dict.fromkeys(seeds))
    sources, commands = _sources(matrix, upstreams, seeds, corpora, out)
    modules = {upstream.label: _modules(upstream, matrix) for upstream in upstreams}
    cells = [
        Cell(
            label=upstream.label,
            upstream=upstream.name,
            checkpoint=sources[upstream.label, seed].checkpoint,
            checkpoint_sha256=sources[upstream.label, seed].sha256,
            needs=sources[upstream.label, seed].needs,
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
        for seed in seeds
        for task in tasks
        for upstream in upstreams
        if (upstream.label, task) in chosen
    ]
    return cells, commands


def _sources(
    matrix: Matrix, upstreams: Sequence[Upstream], seeds: Sequence[int], corpora: Path, out: Path
) -> tuple[dict[tuple[str, int], Source], list[Command]]:
    """Return the checkpoint, its digest and the command that makes it, by label and seed, and the commands to run."""
    maker = None
    if matrix.training is not None:
        from runners.matrix.making import Maker

        maker = Maker(matrix, corpora, out, on_gpu=uses_gpu(matrix.device))
    made = {
        (upstream.label, seed): maker.checkpoint(upstream, seed)
        for upstream in upstreams
        for seed in seeds
        if maker is not None and maker.makes(upstream)
    }
    commands = maker.open() if maker is not None else []
    names = {command.name for command in commands}
    sources: dict[tuple[str, int], Source] = {}
    for upstream in upstreams:
        given = _checkpoint(upstream) if (upstream.label, seeds[0]) not in made else None
        for seed in seeds:
            checkpoint, command = made.get((upstream.label, seed), (given, ""))
            is_there = command not in names
            sources[upstream.label, seed] = Source(
                checkpoint,
                sha256(checkpoint) if checkpoint and is_there else None,
                () if is_there else (command,),
            )
    return sources, commands


def uses_gpu(device: str) -> bool:
    """True if a matrix of this device computes on GPUs, whether there are any or not."""
    if device != "auto":
        return device == "cuda"
    import torch

    return torch.cuda.is_available()


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
