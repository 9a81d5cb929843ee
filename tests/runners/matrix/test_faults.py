"""Killed runners, full disks, damaged files, two runners at once: numbers stay right, no work is repeated."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.downstream import run as downstream
from runners.matrix import run as matrix
from runners.matrix.run import Options
from upstreams.files import read_json

KS = {
    **{"runner.total_steps": 12, "runner.eval_step": 4, "runner.save_step": 4, "runner.log_step": 4},
    **{"runner.eval_dataloaders": ["dev"], "downstream_expert.datarc.num_workers": 0},
    "downstream_expert.datarc.batch_size": 4,
}
PR = {
    **{"runner.total_steps": 12, "runner.eval_step": 4, "runner.save_step": 4, "runner.log_step": 4},
    **{"downstream_expert.corpus.num_workers": 0, "downstream_expert.corpus.batch_size": 2},
}


def write_matrix(path: Path, **changes: Any) -> Path:
    content = {
        "upstreams": ["fbank_no_cmvn", "fbank"],
        "tasks": {"ks": KS, "pr": PR},
        "learning_rates": {"ks": [1.0e-2, 1.0e-4]},
        "seeds": [0],
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


def values(runs: Path) -> dict[str, float]:
    return {
        "/".join(path.parts[-4:-1]): (read_json(path) or {})["value_percent"]
        for path in sorted(runs.glob("cells/*/*/*/results.json"))
    }


def contents(runs: Path) -> dict[Path, bytes]:
    """Return the files that mark a training or a fold as done."""
    return {path: path.read_bytes() for name in ("results", "trained") for path in runs.glob(f"cells/**/{name}.json")}


def models_built(runs: Path) -> int:
    """Return the number of trainings and tests that have started."""
    return sum(len(re.findall("'s downsample rate is", path.read_text())) for path in runs.glob("cells/**/log.txt"))


def runner(file: Path, corpora: Path, runs: Path) -> subprocess.Popen[str]:
    arguments = ["evaluate", str(file), "--corpora", str(corpora), "--out", str(runs), "--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "superbit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def workers_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_neither_a_full_disk_nor_a_damaged_shard_changes_a_number(
    tiny_corpora: Path, tmp_path: Path, small_disk: Path
) -> None:
    file = write_matrix(tmp_path / "m.yaml", upstreams=["fbank_no_cmvn"], tasks={"pr": PR}, learning_rates={})
    without, full, damaged = tmp_path / "without", tmp_path / "full", tmp_path / "damaged"
    assert matrix.evaluate(file, tiny_corpora, without, options=Options(store=False)) == 0
    assert not (without / "features").exists()

    assert matrix.evaluate(file, tiny_corpora, full, options=Options(store_folder=small_disk)) == 0
    assert "No space left on device" in (full / "cells/fbank_no_cmvn/pr/seed0/log.txt").read_text()
    assert list(small_disk.glob("*/*.shard"))
    assert values(full) == pytest.approx(values(without), abs=0.03)

    shared = Options(store_folder=tmp_path / "features")
    assert matrix.evaluate(file, tiny_corpora, tmp_path / "first", options=shared) == 0
    # The heads are bit-identical whatever the store held: computed features are rounded like stored ones.
    assert values(tmp_path / "first") == values(full)
    (shard,) = (tmp_path / "features").glob("*/*.shard")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content[: -len(content) // 8])
    assert matrix.evaluate(file, tiny_corpora, damaged, options=shared) == 0
    assert "is damaged at byte" in (damaged / "cells/fbank_no_cmvn/pr/seed0/log.txt").read_text()
    assert values(damaged) == values(full)


@pytest.mark.slow
def test_runners_and_workers_killed_at_random_moments(tiny_corpora: Path, tmp_path: Path) -> None:
    tasks = {"ks": KS | {"runner.total_steps": 200, "runner.eval_step": 50, "runner.save_step": 20}, "pr": PR}
    file, runs = write_matrix(tmp_path / "m.yaml", tasks=tasks), tmp_path / "runs"
    chance = random.Random(0)
    done: dict[Path, bytes] = {}
    killed = 0
    while killed < 20:
        process = runner(file, tiny_corpora, runs)
        # From the import of s3prl to the end of the last training; a runner that has ended by then is not counted.
        moment = time.monotonic() + chance.uniform(2.0, 9.0)
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.02)
        victims = workers_of(process.pid) if process.poll() is None and killed % 2 else []
        if process.poll() is None:
            os.kill(chance.choice(victims) if victims else process.pid, signal.SIGKILL)
            killed += 1
        printed, _ = process.communicate(timeout=900)
        assert "Traceback" not in printed
        if victims and process.returncode != -signal.SIGKILL:
            assert process.returncode in (0, 1)
        now = contents(runs)
        assert {path: now.get(path) for path in done} == done, "finished work was repeated"
        done = now
        if len(list(runs.glob("cells/*/*/*/results.json"))) == 4:
            runs = tmp_path / f"runs{killed}"
            done = {}
    last = runner(file, tiny_corpora, runs)
    last.communicate(timeout=300)
    assert last.returncode == 0
    for folder in tmp_path.glob("runs*"):
        for path in folder.glob("cells/*/*/*/results.json"):
            result = read_json(path)
            assert result is not None
            again = downstream.main(shlex.split(result["command"])[2:])
            assert again is not None
            assert again[result["metric"]] == result["s3prl_metrics"][result["metric"]]
        # The features that killed runners stored are read by the others: none are damaged.
        logs = "".join(path.read_text() for path in folder.glob("cells/**/log.txt"))
        assert "is damaged" not in logs


@pytest.mark.slow
def test_two_runners_on_one_folder_share_the_trainings(tiny_corpora: Path, tmp_path: Path) -> None:
    file, runs, alone = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs", tmp_path / "alone"
    both = [runner(file, tiny_corpora, runs) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    # Four trainings at two learning rates, two at one; four tests.
    assert models_built(runs) == 6 + 4
    assert matrix.evaluate(file, tiny_corpora, alone, jobs=2) == 0
    assert values(runs) == values(alone)
