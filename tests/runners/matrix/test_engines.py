"""Engines: trainings run where there is room, and give the same results on every engine."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.matrix import run as matrix
from runners.matrix.engines import engine, local
from runners.matrix.engines.work import Work
from runners.matrix.run import Options
from tests.runners.matrix.test_faults import KS, PR, values, write_matrix
from upstreams.errors import UserError

GIGABYTE = 1 << 30


def work(trainings: list[str], run: Any, folder: Path, **changes: Any) -> Work[str]:
    settings: dict[str, Any] = {
        "log_file": lambda training: folder / f"{training}.txt",
        "memory": lambda training: GIGABYTE,
        "busy": lambda training: False,
        "on_gpu": False,
        "watch": lambda running: None,
    }
    return Work(trainings=trainings, run=run, **(settings | changes))


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
        memory=lambda training: needs[training] * GIGABYTE,
        watch=lambda running: together.append(set(running)),
    )
    ended = dict(local.run(given, {"jobs": 4}))
    assert {training for training, reason in ended.items() if reason is None} == {"a", "b", "c", "e"}
    assert "not started: it needs about 20.0 GB of memory" in str(ended["d"])
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
    files = [str(tmp_path / name) for name in "abc"]
    most = [0]
    given = work(files, write_gpu, tmp_path, on_gpu=True, watch=lambda running: most.append(len(running)))
    assert [reason for _, reason in local.run(given, {"jobs": 8})] == [None] * 3
    assert max(most) == 2
    assert {Path(file).read_text() for file in files[:2]} == {"0", "3"}


def test_a_training_of_another_runner_is_started_later(tmp_path: Path) -> None:
    until = time.monotonic() + 1.0
    given = work(["a", "b"], sleep, tmp_path, busy=lambda training: training == "a" and time.monotonic() < until)
    assert [training for training, _ in local.run(given, {"jobs": 1})] == ["b", "a"]


def test_unknown_and_missing_engines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no engine 'slrum'; did you mean 'slurm'"):
        engine("slrum")
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name in ("ray", "submitit"):
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, package in (("ray", "superbit\\[ray\\]"), ("slurm", "superbit\\[slurm\\]")):
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
        "from runners.matrix.engines.work import Work\n"
        "def run(name): Path(sys.argv[1], 'pid' + name).write_text(str(__import__('os').getpid())); time.sleep(60)\n"
        "log = lambda name: Path(sys.argv[1], name + '.txt')\n"
        "work = Work(trainings=['a', 'b'], run=run, log_file=log, memory=lambda t: 1, busy=lambda t: False,\n"
        "    on_gpu=False, watch=lambda running: None)\n"
        "list(local.run(work, {'jobs': 2}))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
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
