"""Trainings as jobs of Slurm, submitted by submitit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from runners.matrix.engines.logged import run_logged
from runners.matrix.engines.work import TrainingT, Work
from upstreams.errors import UserError
from upstreams.versions import install_command

POLL_SECONDS = 0.5  # submitit itself asks Slurm far less often


def run(work: Work[TrainingT], settings: Mapping[str, Any]) -> Iterator[tuple[TrainingT, str | None]]:
    """Run each training as one job of an array, with one CPU, the largest expected memory, and a GPU if needed.

    settings: `folder` for submitit's files; `cluster`: slurm or local (processes of this machine, for a trial run); all
    others are arguments of submitit's `update_parameters` (`timeout_min`, `slurm_partition`, ...). If the runner is
    killed, its jobs continue; if it is interrupted (Ctrl-C), it cancels them. Raises UserError if submitit is not
    installed, or if Slurm is missing or refuses the settings.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(f"the engine slurm needs submitit: {install_command('slurm')}") from None
    given = dict(settings)
    cluster = given.pop("cluster", "slurm")
    folder, _ = given.pop("folder"), given.pop("jobs")
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        memory = max((work.memory(training) for training in work.trainings), default=0)
        needs = {"mem_gb": math.ceil(memory / 2**30), "cpus_per_task": 1, "gpus_per_node": int(work.on_gpu)}
        executor.update_parameters(**({"name": "superbit", "timeout_min": 1440} | needs | given))
    except (RuntimeError, TypeError, ValueError, NameError) as error:
        raise UserError(f"submitit cannot use the cluster {cluster}: {error}") from None
    jobs: list[tuple[Any, TrainingT]] = []
    try:
        try:
            with executor.batch():
                for training in work.trainings:
                    log = work.log_file(training)
                    jobs.append((executor.submit(run_logged, work.run, training, log), training))
        except submitit.core.utils.FailedJobError as error:
            jobs = []
            raise UserError(f"Slurm refused the jobs: {error}") from None
        while jobs:
            work.watch([training for _, training in jobs])
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
    # Any error: submitit raises different ones for a job that Slurm killed, timed out or lost.
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        return f"job {job.job_id} ({job.state}): {lines[0]}"
