"""Cells as jobs of Slurm, handed over by submitit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from runners.matrix.engines import CellT, Work
from runners.matrix.engines.logged import run_logged
from upstreams.errors import UserError

POLL_SECONDS = 0.5  # submitit asks Slurm itself far less often


def run(work: Work[CellT], settings: Mapping[str, Any]) -> Iterator[tuple[CellT, str | None]]:
    """Run every cell as one job of an array, with one CPU, the largest expected memory, a GPU where needed.

    settings: `folder` for submitit's files; `cluster`, slurm or local (processes of this machine, to try things out);
    all others as submitit's `update_parameters` takes them (`timeout_min`, `slurm_partition`, ...). Jobs of a runner
    that is killed go on; one that is interrupted (Ctrl-C) cancels them. Raises UserError when submitit is not
    installed, Slurm is not there or refuses the settings.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("the engine slurm needs submitit: pip install 'superbit[slurm]'") from None
    given = dict(settings)
    cluster = given.pop("cluster", "slurm")
    folder, _ = given.pop("folder"), given.pop("jobs")
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        memory = max((work.memory(cell) for cell in work.cells), default=0)
        needs = {"mem_gb": math.ceil(memory / 2**30), "cpus_per_task": 1, "gpus_per_node": int(work.on_gpu)}
        executor.update_parameters(**({"name": "superbit", "timeout_min": 1440} | needs | given))
    except (RuntimeError, TypeError, ValueError, NameError) as error:
        raise UserError(f"submitit's {cluster} refuses: {error}") from None
    jobs: list[tuple[Any, CellT]] = []
    try:
        try:
            with executor.batch():
                for cell in work.cells:
                    jobs.append((executor.submit(run_logged, work.run, cell, work.log_file(cell)), cell))
        except submitit.core.utils.FailedJobError as error:
            jobs = []
            raise UserError(f"Slurm refuses the jobs: {error}") from None
        while jobs:
            work.watch([cell for _, cell in jobs])
            ended = [entry for entry in jobs if entry[0].done()]
            for entry in ended:
                jobs.remove(entry)
                yield entry[1], _reason(entry[0])
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for job, _ in jobs:
            job.cancel()


def _reason(job: Any) -> str | None:
    try:
        return job.result()
    # Whatever submitit makes of a job that Slurm killed, timed out or lost.
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        return f"job {job.job_id} ({job.state}): {lines[0]}"
