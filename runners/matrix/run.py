"""Run the cells of a matrix that are not done: check everything first, hand them to an engine, say how they end."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runners.corpora.check import check_config
from runners.features.settings import DTYPES, StoreSettings
from runners.matrix import cell as cells
from runners.matrix import engines, folds
from runners.matrix.cell import Cell
from runners.matrix.estimate import Estimate, Estimator, audio_group
from runners.matrix.file import Matrix, Upstream, read_matrix
from runners.matrix.progress import Board, duration, plan_table, size, state
from runners.matrix.record import write_record
from runners.tasks import TASKS, task_configs
from upstreams.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a matrix is run; what its numbers are does not depend on it."""

    engine: str = "local"
    dry_run: bool = False
    store: bool = True  # False: no feature store, whatever the matrix says
    store_folder: Path | None = None  # by default `features` in the runs' folder
    store_gb: float | None = None  # None: the matrix's
    store_dtype: str | None = None  # None: the matrix's


def evaluate(
    matrix: str | Path,
    corpora: Path,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    options: Options = Options(),
) -> int:
    """Run the cells of a matrix file that are not done yet; return how many trainings failed.

    corpora: the folder that holds the corpora; out: the runs' folder, cells lie in
    `cells/<label>/<task>/seed<k>/`; seeds: instead of the matrix's; jobs: trainings at a time on this machine, each in
    a process with one torch thread; only: patterns `label/task` (`*` allowed) of the cells to run, all when empty.
    Everything is checked before the first cell starts: raises UserError that names the file, key, name or
    missing corpus file and what would be right. With `dry_run` nothing is run or written but the plan on the screen.
    """
    read = read_matrix(matrix)
    if jobs < 1:
        raise UserError(f"jobs must be 1 or more, not {jobs}")
    run = engines.engine(options.engine)
    store = _store(read, out, options)
    chosen = choose(read, only)
    todo = plan(read, chosen, corpora, out, read.seeds if seeds is None else seeds, store)
    if options.dry_run:
        show_plan(todo, out, jobs, Console())
        return 0
    write_record(read, out, [cell.seed for cell in todo])
    settings = {"jobs": jobs, "folder": out.absolute() / "jobs"} | read.engines.get(options.engine, {})
    return _run(todo, run, settings, Estimator(out))


def _store(matrix: Matrix, out: Path, options: Options) -> StoreSettings | None:
    max_bytes = matrix.store_bytes if options.store_gb is None else int(options.store_gb * 2**30)
    if not options.store or max_bytes == 0:
        return None
    dtype = options.store_dtype or matrix.store_dtype
    if dtype not in DTYPES:
        raise UserError(f"--feature-store-dtype is {dtype!r}: {nearest(dtype, DTYPES)}")
    return StoreSettings((options.store_folder or out / "features").absolute(), max_bytes, dtype)


def choose(matrix: Matrix, only: Sequence[str]) -> set[tuple[str, str]]:
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


def plan(
    matrix: Matrix,
    chosen: set[tuple[str, str]],
    corpora: Path,
    out: Path,
    seeds: Sequence[int],
    store: StoreSettings | None,
) -> list[Cell]:
    """The chosen trainings, tasks in the matrix's order, after a check of all that they need. Imports s3prl."""
    if not corpora.is_dir():
        raise UserError(f"there is no corpora folder {corpora}; `superbit corpus mini` builds one")
    corpora, out = corpora.absolute(), out.absolute()
    tasks = [task for task in matrix.tasks if any(task == name for _, name in chosen)]
    configs = {task: task_configs(task, corpora, matrix.tasks[task]) for task in tasks}
    for task in tasks:
        for config in configs[task]:
            check_config(TASKS[task], config)
    names = {task: tuple(map(folds.fold, configs[task])) if len(configs[task]) > 1 else () for task in tasks}
    device = _device(matrix.device)
    rows = [u for u in matrix.upstreams if any(u.label == label for label, _ in chosen)]
    checkpoints = _checkpoints(rows, tasks)
    planned = []
    for seed in dict.fromkeys(seeds):
        for task in tasks:
            for upstream in rows:
                if (upstream.label, task) not in chosen:
                    continue
                rates = matrix.learning_rates.get(task, ())
                checkpoint = checkpoints[upstream.label]
                folder = out / "cells" / upstream.label / task / f"seed{seed}"
                for config in configs[task]:
                    cell = Cell(
                        label=upstream.label,
                        upstream=upstream.name,
                        checkpoint=checkpoint,
                        task=task,
                        seed=seed,
                        config=config,
                        learning_rates=rates,
                        corpora=corpora,
                        device=device,
                        store=store,
                        folder=folder / folds.fold(config) if names[task] else folder,
                        identity=cells.identify(upstream.name, checkpoint, task, seed, config, corpora, rates, store),
                        folds=names[task],
                    )
                    planned += cell.siblings()
    return planned


def left_to_run(todo: Sequence[Cell]) -> list[Cell]:
    """The trainings that are not done, and of a cell that only lacks its test the first."""
    left = []
    for cell in todo:
        if cells.finished(cell) is not None:
            continue
        siblings = cell.siblings()
        untested = all(cells.trained(sibling) is not None for sibling in siblings) and cell == siblings[0]
        if untested or cells.trained(cell) is None:
            left.append(cell)
    return left


def _run(todo: list[Cell], run: engines.Engine, settings: dict[str, object], estimate: Estimator) -> int:
    """Run what is not done, with a live table; return the number of failures."""
    console = Console()
    left = left_to_run(todo)
    if len(left) < len(todo):
        console.print(f"{len(todo) - len(left)} of {len(todo)} cells are done already")
    for cell in left:
        if cells.finished(cell) is None:
            cell.results_file.unlink(missing_ok=True)  # of another configuration: not for a report any more
    folds.combine(todo)
    if not left:
        return 0
    memory = {cell.name: estimate(cell).memory_bytes for cell in left}
    with Board(console, len(left)) as board:
        work = engines.Work(
            cells=left,
            run=folds.run_cell,
            log_file=lambda cell: cell.log_file,
            memory=lambda cell: memory[cell.name],
            busy=cells.is_locked,
            on_gpu=left[0].device == "cuda",
            watch=board.watch,
        )
        told: set[Path] = set()
        for cell, reason in run(work, settings):
            said = [] if reason is not None else _ending(cell, told)
            failed = not said
            if failed:
                said = [f"{cell.name} failed: {reason or 'it left no results'} (see {cell.log_file})"]
            board.end(said, failed)
    if board.failed:
        console.print(f"{board.failed} of {len(left)} cells failed; the same command tries them again")
    return board.failed


def _ending(cell: Cell, told: set[Path]) -> list[str]:
    """What a training that is done has led to, the cell's number once; nothing where it has left nothing."""
    training, results = cells.trained(cell), cells.finished(cell)
    said = []
    if training is not None and cell.learning_rates:
        dev = "nothing was best on dev" if training["dev"] is None else f"dev {training['dev']:.4f}"
        said.append(f"{cell.name}: {dev} ({training['seconds']:.0f} s)")
    if results is not None and cell.folder not in told:
        told.add(cell.folder)
        value = f"{results['metric']} {results['value']:.4f} ({sum(results['seconds'].values()):.0f} s)"
        chosen = f", learning rate {results['learning_rate']:g} chosen on dev" if cell.learning_rates else ""
        fold = f" {cell.folder.name}" if cell.folds else ""
        said.append(f"{cell.label}/{cell.task} seed {cell.seed}{fold}: {value}{chosen}")
    return said


def show_plan(todo: Sequence[Cell], out: Path, jobs: int, console: Console) -> None:
    """Print every training, its state and its estimates, and what they come to together."""
    estimator = Estimator(out)
    estimates: dict[str, Estimate] = {}
    new_bytes: dict[str, int] = {}
    states = {cell.name: state(cell) for cell in todo}
    counted: dict[object, int] = {}
    seconds, unknown, features = 0.0, 0, 0
    for cell in todo:
        estimate = estimates[cell.name] = estimator(cell)
        group = audio_group(cell)
        needed = estimate.feature_bytes or 0
        added = max(0, needed - counted.get(group, 0))
        counted[group] = max(needed, counted.get(group, 0))
        done = states[cell.name] == "done"
        new_bytes[cell.name] = (0 if done else added) + estimate.checkpoint_bytes
        features += 0 if done else added
        if not done and estimate.seconds is None:
            unknown += 1
        elif not done:
            seconds += estimate.seconds or 0.0
    console.print(plan_table(todo, estimates, new_bytes, states))
    left = sum(state != "done" for state in states.values())
    total = (
        f"{left} of {len(todo)} trainings to run: about {duration(seconds / max(1, min(jobs, left)))} with {jobs} jobs"
    )
    if unknown:
        total += f", and {unknown} of which nothing is known"
    console.print(total, soft_wrap=True)
    store = todo[0].store
    if store is not None:
        console.print(
            f"features: about {size(features)}, at most {size(store.max_bytes)} kept in {store.folder}", soft_wrap=True
        )
    if any(estimates[cell.name].source == "MACs" and states[cell.name] != "done" for cell in todo):
        console.print("Times from MACs are guesses to within a factor of about 3; one measured training replaces them.")


def _checkpoints(upstreams: list[Upstream], tasks: Iterable[str]) -> dict[str, Path | None]:
    """Import what the cells need, once, for the processes that are forked; find each upstream's weights by label."""
    # Before anything computes: a pool of OpenMP threads in this process would hang its forks.
    import torch

    torch.set_num_threads(1)
    from upstreams import register, registry

    register()
    from s3prl import hub

    for module in ("runners.downstream.run", "s3prl.run_downstream"):
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
        raise UserError("the matrix asks for device cuda, and torch sees no GPU; set device: cpu or auto")
    return name
