"""Engines: cells run where there is room, and come to the same results wherever they run."""

from __future__ import annotations

import builtins
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.matrix import run as matrix
from runners.matrix.engines import Work, engine, local
from runners.matrix.run import Options
from tests.runners.matrix.test_faults import KS, PR, values, write_matrix
from upstreams.errors import UserError

GIGABYTE = 1 << 30


def work(cells: list[str], run: Any, folder: Path, **changes: Any) -> Work[str]:
    settings: dict[str, Any] = {
        "memory": lambda cell: GIGABYTE,
        "busy": lambda cell: False,
        "on_gpu": False,
        "watch": lambda running: None,
    }
    return Work(cells, run, lambda cell: folder / f"{cell}.txt", **(settings | changes))


def sleep(cell: str) -> None:
    time.sleep(0.3)


def test_what_does_not_fit_into_memory_waits_or_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "free_memory", lambda: 10 * GIGABYTE)
    needs = {"a": 5, "b": 5, "c": 3, "d": 20, "e": 1}
    together: list[set[str]] = []
    given = work(
        list(needs),
        sleep,
        tmp_path,
        memory=lambda cell: needs[cell] * GIGABYTE,
        watch=lambda running: together.append(set(running)),
    )
    ended = dict(local.run(given, {"jobs": 4}))
    assert {cell for cell, reason in ended.items() if reason is None} == {"a", "b", "c", "e"}
    assert "needs about 20.0 GB of memory" in str(ended["d"])
    assert "was not started" in str(ended["d"])
    # Nine of the ten gigabytes are given out: a and b do not fit beside one another, the small ones fill the room.
    assert all(sum(needs[cell] for cell in running) <= 9 for running in together)
    assert {"a", "c", "e"} in together


def write_gpu(cell: str) -> None:
    Path(cell).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(0.5)


def test_each_cell_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "3"])
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: fork)
    cells = [str(tmp_path / name) for name in "abc"]
    most = [0]
    given = work(cells, write_gpu, tmp_path, on_gpu=True, watch=lambda running: most.append(len(running)))
    assert [reason for _, reason in local.run(given, {"jobs": 8})] == [None] * 3
    assert max(most) == 2
    assert {Path(cell).read_text() for cell in cells[:2]} == {"0", "3"}


def test_what_another_runner_is_at_work_on_comes_later(tmp_path: Path) -> None:
    until = time.monotonic() + 1.0
    given = work(["a", "b"], sleep, tmp_path, busy=lambda cell: cell == "a" and time.monotonic() < until)
    assert [cell for cell, _ in local.run(given, {"jobs": 1})] == ["b", "a"]


def test_engines_that_are_unknown_or_not_installed_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_slurm_or_submitit_refuse_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    run = engine("slurm")
    settings = {"jobs": 1, "folder": tmp_path, "cluster": "local", "timout_min": 3}
    with pytest.raises(UserError, match="timout_min"):
        list(run(work(["a"], sleep, tmp_path), settings))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="srun"):
        list(run(work(["a"], sleep, tmp_path), {"jobs": 1, "folder": tmp_path}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_clusters_come_to_the_same_results(tiny_corpora: Path, tmp_path: Path, name: str) -> None:
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
