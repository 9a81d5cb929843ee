"""Trainings as tasks of a Ray cluster, whose machines see the runs folder, the corpora and this project's code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import runners
from runners.matrix.engines.logged import run_logged
from runners.matrix.engines.work import TrainingT, Work
from upstreams.errors import UserError
from upstreams.versions import install_command


def run(work: Work[TrainingT], settings: Mapping[str, Any]) -> Iterator[tuple[TrainingT, str | None]]:
    """Run each training as one Ray task with one CPU, its expected memory, and a GPU if the matrix uses cuda.

    settings: `address` of the cluster as `ray.init` takes it; by default RAY_ADDRESS, or a new cluster on this machine.
    Each task has its own worker process. Raises UserError if Ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"the engine ray needs Ray: {install_command('ray')}") from None
    ours = not ray.is_initialized()
    if ours:
        # The workers import the same code as this process, and use only the CPU that they are given.
        environment = {"PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"}
        try:
            ray.init(address=settings.get("address"), runtime_env={"env_vars": environment}, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {settings.get('address')}: {error}") from None
    # A new process for each task, so that no memory stays allocated. No retries: as with every engine, the next run
    # of the command resumes a training that died.
    task: Any = ray.remote(num_cpus=1, num_gpus=int(work.on_gpu), max_calls=1, max_retries=0)(_run_logged)
    largest = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    pending: dict[Any, TrainingT] = {}
    try:
        for training in work.trainings:
            needed = work.memory(training)
            if needed > largest:
                yield training, _too_large(needed, largest)
                continue
            arguments = (str(Path.cwd()), work.run, training, work.log_file(training))
            pending[task.options(memory=needed).remote(*arguments)] = training
        while pending:
            work.watch(list(pending.values()))
            ended, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ended:
                yield pending.pop(reference), _reason(ray, reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _run_logged(folder: str, run: Callable[[TrainingT], object], training: TrainingT, log: Path) -> str | None:
    """Run the training where modules of `folder`, the runner's, are found after all others; see `run_logged`."""
    if folder not in sys.path:
        sys.path.append(folder)  # the worker's own folder is another one
    return run_logged(run, training, log)


def _reason(ray: Any, reference: Any) -> str | None:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _too_large(needed: float, largest: float) -> str:
    return (
        f"not started: it needs about {needed / 2**30:.1f} GB of memory, and the largest node of the cluster has"
        f" {largest / 2**30:.1f} GB"
    )


def _python_path() -> str:
    here = str(Path(runners.__file__).parents[1])
    return os.pathsep.join([here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
