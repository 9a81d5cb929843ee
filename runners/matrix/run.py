"""Run the stages of a matrix that are not done: plan and check first, then run them on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runners.features.settings import DTYPES, StoreSettings
from runners.matrix.cell import Cell, finished
from runners.matrix.dry_run import show_plan
from runners.matrix.engines import engine
from runners.matrix.estimate import Estimator
from runners.matrix.execution import Execution
from runners.matrix.file import Matrix, read_matrix
from runners.matrix.folds import write_mean
from runners.matrix.plan import plan
from runners.matrix.record import write_record
from runners.matrix.stale import kept_aside, settle
from runners.matrix.training_cost import CommandTimes
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
    settings: Sequence[str] = (),
    options: Options = Options(),
) -> int:
    """Run the stages of a matrix that are not done yet; return how many of them failed, or needed one that failed.

    With `training` in the matrix, the first stages make the checkpoints of its rows.

    matrix: name of a packaged matrix, or a YAML file; corpora: folder of the corpora; out: runs folder, whose cells are
    in `cells/<label>/<task>/seed<k>/`; seeds: default: the matrix's; jobs: processes in parallel on this machine; only:
    patterns LABEL/TASK with `*` as a wildcard, default: all cells; settings: KEY=VALUE with dotted keys, change values
    of the matrix. Everything is checked before a stale result moves aside and before the first stage starts: raises
    UserError that names the file, the key, the name or the missing file of the corpora. With `dry_run`, only prints the
    plan.
    """
    content = read_matrix(matrix, settings)
    if jobs < 1:
        raise UserError(f"jobs must be 1 or more, not {jobs}")
    run = engine(options.engine)
    cells, commands = plan(
        content,
        corpora=corpora,
        out=out,
        seeds=content.seeds if seeds is None else seeds,
        only=only,
        store=_store(content, out, options),
        rerun_stale=options.rerun_stale,
    )
    cells = _checked(cells, f" (in matrix {matrix})", will_run=not options.dry_run)
    if options.dry_run:
        show_plan(cells, commands, Estimator(out), CommandTimes(out), jobs=jobs, console=_console())
        return 0
    write_record(content, out, seeds=[cell.seed for cell in cells])
    settle(cells)
    for cell in cells:
        write_mean(cell)
    of_engine = {"jobs": jobs, "folder": out.absolute() / "jobs"} | content.engines.get(options.engine, {})
    return Execution(cells, commands, out).run(run, of_engine)


def _console() -> Console:
    """Return a console that is wide enough for every column if the output is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _checked(cells: list[Cell], where: str, *, will_run: bool) -> list[Cell]:
    """Return the cells after a check of those that are not done; the check imports torch and s3prl.

    where: ends a message about a value of a configuration. will_run: False: the machine needs no GPU.
    """
    open_cells = [
        number
        for number, cell in enumerate(cells)
        if not all(finished(fold) or kept_aside(fold) for fold in cell.folds)
    ]
    if open_cells:
        from runners.matrix.check import checked

        done = checked([cells[number] for number in open_cells], where, will_run=will_run)
        for number, cell in zip(open_cells, done, strict=True):
            cells[number] = cell
    return cells


def _store(matrix: Matrix, out: Path, options: Options) -> StoreSettings | None:
    max_bytes = matrix.store_bytes if options.store_gb is None else int(options.store_gb * 2**30)
    if not options.store or max_bytes == 0:
        return None
    dtype = options.store_dtype or matrix.store_dtype
    if dtype not in DTYPES:
        raise UserError(f"--feature-store-dtype is {dtype!r}: {nearest(dtype, DTYPES)}")
    return StoreSettings((options.store_folder or out / "features").absolute(), max_bytes, dtype)
