"""Run the trainings of a matrix that are not done: plan and check first, then run them on an engine, report each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runners.features.settings import DTYPES, StoreSettings
from runners.matrix import layer_choice, locks
from runners.matrix.cell import Cell, Fold, Training, finished, trained
from runners.matrix.engines import engine
from runners.matrix.engines.work import Engine, Work
from runners.matrix.estimate import Estimator
from runners.matrix.file import Matrix, read_matrix
from runners.matrix.folds import write_mean
from runners.matrix.plan import plan, trainings_to_run
from runners.matrix.progress import Board, show_plan
from runners.matrix.record import write_record
from runners.matrix.stale import kept_aside, settle, stale_results
from runners.matrix.training import train_and_test
from runners.tasks import TASKS
from upstreams.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a matrix is run. Its numbers do not depend on this."""

    engine: str = "local"
    dry_run: bool = False
    store: bool = True  # False: no feature store, even if the matrix has one
    store_folder: Path | None = None  # default: `features` in the runs folder
    store_gb: float | None = None  # default: the matrix's
    store_dtype: str | None = None  # default: the matrix's
    rerun_stale: bool = False  # True: compute results of other code or versions again


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
    """Run the trainings of a matrix that are not done yet; return how many of them failed.

    matrix: name of a packaged matrix, or a YAML file; corpora: folder of the corpora; out: runs folder, whose cells are
    in `cells/<label>/<task>/seed<k>/`; seeds: default: the matrix's; jobs: trainings in parallel on this machine; only:
    patterns LABEL/TASK with `*` as a wildcard, default: all cells. Everything is checked before a stale result moves
    aside and before the first training starts: raises UserError that names the file, the key, the name or the missing
    file of the corpora. With `dry_run`, only prints the plan.
    """
    content = read_matrix(matrix)
    if jobs < 1:
        raise UserError(f"jobs must be 1 or more, not {jobs}")
    run = engine(options.engine)
    cells = plan(
        content,
        corpora=corpora,
        out=out,
        seeds=content.seeds if seeds is None else seeds,
        only=only,
        store=_store(content, out, options),
        rerun_stale=options.rerun_stale,
    )
    cells = _checked(cells, f" (in matrix {matrix})")
    if options.dry_run:
        show_plan(cells, Estimator(out), jobs=jobs, console=Console())
        return 0
    write_record(content, out, seeds=[cell.seed for cell in cells])
    settle(cells)
    for cell in cells:
        write_mean(cell)
    settings = {"jobs": jobs, "folder": out.absolute() / "jobs"} | content.engines.get(options.engine, {})
    return _run(cells, run, settings, Estimator(out))


def _checked(cells: list[Cell], where: str) -> list[Cell]:
    """Return the cells after a check of those that are not done; the check imports torch and s3prl.

    where: ends a message about a value of a configuration.
    """
    open_cells = [
        number
        for number, cell in enumerate(cells)
        if not all(finished(fold) or kept_aside(fold) for fold in cell.folds)
    ]
    if open_cells:
        from runners.matrix.check import checked

        for number, cell in zip(open_cells, checked([cells[number] for number in open_cells], where), strict=True):
            cells[number] = cell
    return cells


def run_training(training: Training) -> None:
    """Run one training in this process, and write the mean over the cell's folds if this was the last one."""
    if TASKS[training.cell.task].has_head:
        train_and_test(training)
    else:
        layer_choice.choose_and_test(training.fold)
    write_mean(training.cell)


def _store(matrix: Matrix, out: Path, options: Options) -> StoreSettings | None:
    max_bytes = matrix.store_bytes if options.store_gb is None else int(options.store_gb * 2**30)
    if not options.store or max_bytes == 0:
        return None
    dtype = options.store_dtype or matrix.store_dtype
    if dtype not in DTYPES:
        raise UserError(f"--feature-store-dtype is {dtype!r}: {nearest(dtype, DTYPES)}")
    return StoreSettings((options.store_folder or out / "features").absolute(), max_bytes, dtype)


def _run(cells: Sequence[Cell], run: Engine, settings: dict[str, object], estimate: Estimator) -> int:
    """Run what is not done, with a live table; return the number of failed trainings."""
    console = Console()
    trainings = trainings_to_run(cells)
    done = sum(all(finished(fold) is not None for fold in cell.folds) for cell in cells)
    if done:
        console.print(f"{done} of {len(cells)} cells are done; {len(trainings)} trainings to run")
    _, staying = stale_results(cells)
    if staying:
        console.print(
            f"{len(staying)} results are of other code or versions. They stay in the report; --rerun-stale computes"
            " them again, and --dry-run lists them",
            soft_wrap=True,
        )
    if not trainings:
        return 0
    memory = {training.name: estimate(training).memory_bytes for training in trainings}
    with Board(console, len(trainings)) as board:
        work = Work(
            trainings=trainings,
            run=run_training,
            log_file=lambda training: training.log_file,
            memory=lambda training: memory[training.name],
            busy=lambda training: locks.is_held(training.folder),
            on_gpu=trainings[0].cell.device == "cuda",
            watch=board.watch,
        )
        reported: set[Path] = set()
        for training, reason in run(work, settings):
            lines = [] if reason is not None else _report(training, reported)
            failed = not lines
            if failed:
                lines = [f"{training.name} failed: {reason or 'it left no results'} (see {training.log_file})"]
            board.end(lines, failed)
    if board.failed:
        console.print(f"{board.failed} of {len(trainings)} trainings failed; run the same command again to retry them")
    return board.failed


def _report(training: Training, reported: set[Path]) -> list[str]:
    """Return lines about a training that ended, and about its fold once it is done; empty if it left no results.

    reported: folders of the folds that have been reported, to which this one is added.
    """
    fold, record = training.fold, trained(training)
    lines = []
    if record is not None and training.tried_rate is not None:
        dev = "the dev score never improved" if record["dev_percent"] is None else f"dev {record['dev_percent']:.2f} %"
        lines.append(f"{training.name}: {dev} ({record['seconds']:.0f} s)")
    if fold.folder not in reported and (line := _number(fold)) is not None:
        reported.add(fold.folder)
        lines.append(line)
    return lines


def _number(fold: Fold) -> str | None:
    """Return a line with the fold's number; None if it is not done."""
    results = finished(fold)
    if results is None:
        return None
    chosen = f", learning rate {results['learning_rate']:g} chosen on dev" if fold.cell.learning_rates else ""
    seconds = sum(results["seconds"].values())
    return f"{fold.name}: {results['metric']} {results['value_percent']:.2f} % ({seconds:.0f} s){chosen}"
