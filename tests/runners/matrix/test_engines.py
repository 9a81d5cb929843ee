"""Engines: trainings run where there is room, and give the same results on every engine."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.matrix import run as matrix
from runners.matrix.engines import engine, local
from runners.matrix.engines.work import Resources, Work
from runners.matrix.graph import Graph
from runners.matrix.run import Options
from tests.runners.matrix.test_faults import KS, PR, values, write_matrix
from upstreams.errors import UserError

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Job:
    name: str
    needs: tuple[str, ...] = ()


def work(names: list[str], run: Any, folder: Path, **changes: Any) -> Work[Job]:
    """Work of jobs without needs; `run` and the functions in `changes` get their names, not the jobs."""
    settings: dict[str, Any] = {
        "log_file": lambda name: folder / f"{name}.txt",
        "resources": lambda name: Resources(memory=GIGABYTE),
        "busy": lambda name: False,
        "watch": lambda names: None,
    } | changes
    watch = settings.pop("watch")
    of_names = {key: lambda job, function=function: function(job.name) for key, function in settings.items()}
    return Work(
        graph=Graph([Job(name) for name in names]),
        run=lambda job: run(job.name),
        watch=lambda jobs: watch([job.name for job in jobs]),
        **of_names,
    )


def ended(run: Iterator[tuple[Job, str | None]]) -> dict[str, str | None]:
    """Return the reason of each job, by its name, in the order in which they ended."""
    return {job.name: reason for job, reason in run}


def sleep(training: str) -> None:
    time.sleep(0.3)


def test_a_training_that_does_not_fit_into_memory_waits_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "free_memory", lambda: 10 * GIGABYTE)
    needs = {"a": 5, "b": 5, "c": 3, "d": 20, "e": 1}
    together: list[set[str]] = []
    given = work(
        list(needs),
        sleep,
        tmp_path,
        resources=lambda name: Resources(memory=needs[name] * GIGABYTE),
        watch=lambda running: together.append(set(running)),
    )
    found = ended(local.run(given, {"jobs": 4}))
    assert {training for training, reason in found.items() if reason is None} == {"a", "b", "c", "e"}
    assert "not started: it needs about 20.0 GB of memory" in str(found["d"])
    # Nine of the ten gigabytes are used: a and b do not fit together, and the small ones fill the rest.
    assert all(sum(needs[training] for training in running) <= 9 for running in together)
    assert {"a", "c", "e"} in together


def write_gpu(training: str) -> None:
    Path(training).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(0.5)


def test_each_training_has_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "3"])
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: fork)
    one = Resources(memory=0, gpus=1)
    files = [str(tmp_path / name) for name in "abc"]
    most = [0]
    given = work(
        files, write_gpu, tmp_path, resources=lambda name: one, watch=lambda running: most.append(len(running))
    )
    assert list(ended(local.run(given, {"jobs": 8})).values()) == [None] * 3
    assert max(most) == 2
    assert {Path(file).read_text() for file in files[:2]} == {"0", "3"}


def test_a_training_of_another_runner_is_started_later(tmp_path: Path) -> None:
    until = time.monotonic() + 1.0
    given = work(["a", "b"], sleep, tmp_path, busy=lambda training: training == "a" and time.monotonic() < until)
    assert list(ended(local.run(given, {"jobs": 1}))) == ["b", "a"]


def test_stages_start_when_their_needs_are_done_the_longest_chain_first(tmp_path: Path) -> None:
    seconds = {"labels": 1.0, "train": 9.0, "pack": 1.0, "cell": 5.0, "other": 6.0}
    jobs = [Job("cell", ("train",)), Job("pack", ("train",)), Job("other"), Job("train", ("labels",)), Job("labels")]
    graph = Graph(jobs, lambda job: seconds[job.name])
    order = []
    while ready := graph.ready():
        order.append([job.name for job in ready])
        graph.start(ready[0])
        assert not graph.end(ready[0], failed=False)
    assert order == [["labels", "other"], ["train", "other"], ["other", "cell", "pack"], ["cell", "pack"], ["pack"]]


def test_what_needs_a_failed_stage_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    jobs = [Job("a"), Job("b"), Job("after a", ("a",)), Job("after both", ("after a", "b")), Job("after b", ("b",))]
    graph = Graph(jobs)
    done, dropped = [], []
    given = Work(
        graph=graph,
        run=lambda job: 1 / 0 if job.name == "a" else None,
        log_file=lambda job: tmp_path / f"{job.name}.txt",
        resources=lambda job: Resources(memory=0),
        busy=lambda job: False,
        watch=lambda jobs: None,
    )
    for job, reason in local.run(given, {"jobs": 2}):
        done.append((job.name, reason is None))
        dropped += [other.name for other in graph.end(job, failed=reason is not None)]
    assert sorted(done) == [("a", False), ("after b", True), ("b", True)]
    assert dropped == ["after a", "after both"]


def test_a_stage_that_measures_time_runs_alone_and_one_of_several_processes_is_not_overtaken(tmp_path: Path) -> None:
    needs = {"alone": Resources(memory=0, alone=True), "two": Resources(memory=0, processes=2)}
    together: list[set[str]] = []
    given = work(
        ["a", "alone", "two", "b", "c"],
        sleep,
        tmp_path,
        resources=lambda name: needs.get(name, Resources(memory=0)),
        watch=lambda running: together.append(set(running)),
    )
    assert set(ended(local.run(given, {"jobs": 2})).values()) == {None}
    assert all(len(running) == 1 for running in together if running & set(needs))
    assert together.index({"two"}) < next(at for at, running in enumerate(together) if running & {"b", "c"})


def test_unknown_and_missing_engines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no engine 'slrum'; did you mean 'slurm'"):
        engine("slrum")
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name in ("ray", "submitit"):
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, package in (("ray", "pip install 'ray>="), ("slurm", "pip install 'submitit>=")):
        with pytest.raises(UserError, match=package):
            list(engine(name)(work(["a"], sleep, tmp_path), {"jobs": 1, "folder": tmp_path}))


def test_errors_of_slurm_and_submitit_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    run = engine("slurm")
    settings = {"jobs": 1, "folder": tmp_path, "cluster": "local", "timout_min": 3}
    with pytest.raises(UserError, match="timout_min"):
        list(run(work(["a"], sleep, tmp_path), settings))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="srun"):
        list(run(work(["a"], sleep, tmp_path), {"jobs": 1, "folder": tmp_path}))


def test_workers_end_when_the_runner_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from runners.matrix.engines import local\n"
        "from tests.runners.matrix.test_engines import work\n"
        "def run(name): Path(sys.argv[1], 'pid' + name).write_text(str(__import__('os').getpid())); time.sleep(60)\n"
        "list(local.run(work(['a', 'b'], run, Path(sys.argv[1])), {'jobs': 2}))"
    )
    root = Path(__file__).parents[3]
    runner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=root)
    files = [tmp_path / "pida", tmp_path / "pidb"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    workers = [int(file.read_text()) for file in files]
    runner.kill()
    runner.wait()
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its runner"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """True if the process runs. A process that has ended but that nobody has waited for does not."""
    try:
        return re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is None
    except FileNotFoundError:
        return False


def test_a_log_shows_each_warning_once(tmp_path: Path) -> None:
    # In a process of its own, as pytest records warnings in this one and in its forks.
    script = (
        "import sys, warnings; from pathlib import Path; from runners.matrix.engines.logged import run_logged\n"
        "def run(name):\n"
        "    for number in range(6):\n"
        "        with warnings.catch_warnings(): pass\n"  # makes Python forget the warnings that it has shown
        "        warnings.warn('an old function', FutureWarning)\n"
        "        warnings.warn(f'number {number % 2}', UserWarning)\n"
        "run_logged(run, 'a', Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log.txt")], check=True)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("FutureWarning: an old function") == 1
    assert log.count("UserWarning: number 0") == log.count("UserWarning: number 1") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_clusters_give_the_same_results(tiny_corpora: Path, tmp_path: Path, name: str) -> None:
    alone = tmp_path / "alone"
    file = write_matrix(tmp_path / "m.yaml", tasks={"ks": KS, "pr": PR})
    assert matrix.evaluate(file, tiny_corpora, alone, jobs=2) == 0
    content = yaml.safe_load(file.read_text())
    runs = tmp_path / name
    if name == "slurm":
        pytest.importorskip("submitit")
        file.write_text(yaml.safe_dump(content | {"slurm": {"cluster": "local", "timeout_min": 10}}))
        assert matrix.evaluate(file, tiny_corpora, runs, jobs=2, options=Options(engine="slurm")) == 0
    else:
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        try:
            cluster.add_node(num_cpus=2)
            cluster.wait_for_nodes()
            file.write_text(yaml.safe_dump(content | {"ray": {"address": cluster.address}}))
            assert matrix.evaluate(file, tiny_corpora, runs, jobs=2, options=Options(engine="ray")) == 0
        finally:
            cluster.shutdown()
    assert values(runs) == values(alone)
    assert len(values(runs)) == 4
