"""Stages as jobs of Slurm, submitted by submitit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from runners.matrix.engines.logged import run_logged
from runners.matrix.engines.work import Work
from runners.matrix.graph import StageT
from upstreams.errors import UserError
from upstreams.versions import install_command

POLL_SECONDS = 0.5  # submitit itself asks Slurm far less often


def run(work: Work[StageT], settings: Mapping[str, Any]) -> Iterator[tuple[StageT, str | None]]:
    """Run each stage as one job, with a CPU for each of its processes, its expected memory and its GPUs.

    Stages that are ready at the same time and need the same processes and GPUs are jobs of one array.

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
        executor.update_parameters(**({"name": "superbit", "timeout_min": 1440} | given))
    except (RuntimeError, TypeError, ValueError, NameError) as error:
        raise UserError(f"submitit cannot use the cluster {cluster}: {error}") from None
    jobs: list[tuple[Any, StageT]] = []
    try:
        while work.graph or jobs:
            try:
                jobs += _submitted(work, executor, given)
            except submitit.core.utils.FailedJobError as error:
                raise UserError(f"Slurm refused the jobs: {error}") from None
            work.watch([stage for _, stage in jobs])
            ended = [entry for entry in jobs if entry[0].done()]
            for entry in ended:
                jobs.remove(entry)
                yield entry[1], _reason(entry[0])
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        for job, _ in jobs:
            job.cancel()


def _submitted(work: Work[StageT], executor: Any, given: dict[str, Any]) -> list[tuple[Any, StageT]]:
    """Submit the stages that are ready; return their jobs."""
    groups: dict[tuple[int, int], list[StageT]] = {}
    for stage in work.graph.ready():
        needed = work.resources(stage)
        groups.setdefault((needed.processes, needed.gpus), []).append(stage)
    jobs = []
    for (processes, gpus), stages in groups.items():
        memory = max(work.resources(stage).memory for stage in stages)
        needs: dict[str, Any] = {"mem_gb": math.ceil(memory / 2**30), "cpus_per_task": processes, "gpus_per_node": gpus}
        executor.update_parameters(**(needs | given))
        with executor.batch():
            jobs += [(executor.submit(run_logged, work.run, stage, work.log_file(stage)), stage) for stage in stages]
        for stage in stages:
            work.graph.start(stage)
    return jobs


def _reason(job: Any) -> str | None:
    try:
        return job.result()
    # Any error: submitit raises different ones for a job that Slurm killed, timed out or lost.
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        return f"job {job.job_id} ({job.state}): {lines[0]}"
