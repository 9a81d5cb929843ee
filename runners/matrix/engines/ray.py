"""Stages as tasks of a Ray cluster, whose machines see the runs folder, the corpora and this project's code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runners.matrix.engines.logged import run_logged
from runners.matrix.engines.work import Resources, Work
from runners.matrix.graph import StageT
from runners.matrix.processes import python_path
from upstreams.errors import UserError
from upstreams.versions import install_command


def run(work: Work[StageT], settings: Mapping[str, Any]) -> Iterator[tuple[StageT, str | None]]:
    """Run each stage as one Ray task, with a CPU for each of its processes, its expected memory and its GPUs.

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
        environment = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        try:
            ray.init(address=settings.get("address"), runtime_env={"env_vars": environment}, log_to_driver=False)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {settings.get('address')}: {error}") from None
    # A new process for each task, so that no memory stays allocated. No retries: as with every engine, the next run
    # of the command resumes a stage that died.
    task: Any = ray.remote(max_calls=1, max_retries=0)(_run_logged)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    pending: dict[Any, StageT] = {}
    try:
        while work.graph or pending:
            for stage in work.graph.ready():
                work.graph.start(stage)
                needed = work.resources(stage)
                if reason := _too_large(needed, nodes):
                    yield stage, reason
                    continue
                options = {"num_cpus": needed.processes, "num_gpus": needed.gpus, "memory": needed.memory}
                arguments = (str(Path.cwd()), work.run, stage, work.log_file(stage))
                pending[task.options(**options).remote(*arguments)] = stage
            work.watch(list(pending.values()))
            ended, _ = ray.wait(list(pending), timeout=0.5) if pending else ([], [])
            for reference in ended:
                yield pending.pop(reference), _reason(ray, reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _run_logged(folder: str, run: Callable[[StageT], object], stage: StageT, log: Path) -> str | None:
    """Run the stage where modules of `folder`, the runner's, are found after all others; see `run_logged`."""
    if folder not in sys.path:
        sys.path.append(folder)  # the worker's own folder is another one
    return run_logged(run, stage, log)


def _reason(ray: Any, reference: Any) -> str | None:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _too_large(needed: Resources, nodes: list[dict[str, float]]) -> str:
    """Return why no node of the cluster can ever run a stage; empty if one can."""
    for key, amount, unit in (
        ("CPU", float(needed.processes), "CPUs"),
        ("GPU", float(needed.gpus), "GPUs"),
        ("memory", needed.memory / 2**30, "GB of memory"),
    ):
        scale = 2**30 if key == "memory" else 1
        largest = max((node.get(key, 0.0) / scale for node in nodes), default=0.0)
        if amount > largest:
            return f"not started: it needs {amount:.1f} {unit}, and the largest node of the cluster has {largest:.1f}"
    return ""
