"""Processes that fill one feature store share the work, also if some of them are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.runners.features.toy import Counting, assert_same, store_in


class Slow(Counting):
    """Takes 20 ms for each utterance, and appends a line to a file for it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        with self.file.open("a") as file:
            file.writelines(f"{len(wav)} {float(wav[0])}\n" for wav in wavs)
        time.sleep(0.02 * len(wavs))
        return super().forward(wavs)


def fill(folder: Path, seed: int) -> None:
    store = store_in(folder / "store", Slow(folder / "computed"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).tolist()
    wavs = [0.1 * torch.randn(1000 + n, generator=torch.Generator().manual_seed(n)) for n in range(40)]
    for start in range(0, 40, 5):
        assert_same(store, Counting(), [wavs[n] for n in order[start : start + 5]])


def test_processes_that_fill_one_store_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path, seed)) for seed in (0, 0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    computed = (tmp_path / "computed").read_text().splitlines()
    assert len(computed) == len(set(computed)) == 40, "an utterance was computed twice"


def test_a_killed_writer_loses_at_most_one_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(0)
    for kill in range(20):
        process = context.Process(target=fill, args=(tmp_path, kill))
        process.start()
        process.join(float(random.uniform(0.0, 0.15)))
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    fill(tmp_path, 99)  # compares every feature
    computed = (tmp_path / "computed").read_text().splitlines()
    # A kill costs at most the batch that was being computed.
    assert len(set(computed)) == 40
    assert len(computed) <= 40 + 20 * 5
    before = len(computed)
    fill(tmp_path, 100)
    assert len((tmp_path / "computed").read_text().splitlines()) == before
