"""Folders whose names hold any character: every task's corpus is checked, trained on and evaluated there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runners.downstream import run as downstream
from runners.tasks import TASKS
from tests.runners.corpora.test_published import superbit
from tests.runners.downstream.experiments import train

ODD = "a 'b' \"c\" [d] *?{e}<f> ${root} $g,,h;i#j%k=l&m|n\\o:p~q é\nr"


@pytest.fixture
def odd_corpora(tiny_corpora: Path, more_tiny_corpora: Path, tmp_path: Path) -> Path:
    """Return the corpora of all tasks in a folder of an odd name."""
    for source in (tiny_corpora, more_tiny_corpora):
        shutil.copytree(source, tmp_path / ODD / "corpora", dirs_exist_ok=True)
    for listing in (tmp_path / ODD).rglob("wav.scp"):  # a line holds no path with a line feed
        listing.write_text(listing.read_text().replace(f"{more_tiny_corpora}/Libri2Mix_diarization", ".."))
    return tmp_path / ODD / "corpora"


@pytest.mark.parametrize("task", TASKS)
def test_every_corpus_is_checked_in_a_folder_of_any_name(task: str, odd_corpora: Path) -> None:
    done = superbit("check", task, odd_corpora, "--any-size")
    assert done.exit_code == 0, done.output


FAST = ("pr", "sd")


@pytest.mark.parametrize("task", [pytest.param(task, marks=() if task in FAST else pytest.mark.slow) for task in TASKS])
def test_every_task_trains_and_evaluates_in_a_folder_of_any_name(task: str, odd_corpora: Path, tmp_path: Path) -> None:
    expdir = tmp_path / ODD / "expdir"
    if TASKS[task].has_head:
        train(task, odd_corpora, expdir)
        flags = ["-e", str(expdir / "states-4.ckpt")]
    else:
        flags = ["-u", "fbank_no_cmvn", "-l", "0", "-d", task, "-p", str(expdir), "--corpora", str(odd_corpora)]
        flags += ["-o", "config.downstream_expert.datarc.num_workers=0,,config.downstream_expert.max_workers=1"]
    metrics = downstream.main(["-m", "evaluate", *flags, "--device", "cpu"])
    assert metrics is not None and TASKS[task].metric in metrics
    assert {path.name for path in tmp_path.iterdir()} == {ODD}, "nothing is written elsewhere"
