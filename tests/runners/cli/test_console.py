"""`superbit --quiet` and `superbit --verbose`: what they print and what they hide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile


def superbit(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "superbit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two audio files."""
    folder = tmp_path_factory.mktemp("audio")
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", np.zeros(48_000, np.float32), 16_000)
    return folder


def test_quiet_hides_the_progress_bar_and_keeps_the_result(audio: Path, tmp_path: Path) -> None:
    usual = superbit("manifest", audio, "--out", tmp_path / "usual", "--valid", 0)
    quiet = superbit("--quiet", "manifest", audio, "--out", tmp_path / "quiet", "--valid", 0)
    assert usual.returncode == quiet.returncode == 0, usual.stderr + quiet.stderr
    assert "file/s" in usual.stderr and quiet.stderr == ""
    assert quiet.stdout.replace("/quiet/", "/usual/") == usual.stdout != ""


def test_a_quiet_downstream_training_ends(tiny_corpora: Path, tmp_path: Path) -> None:
    """s3prl's training loop ends by its progress bar, which must count although it is not shown."""
    steps = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    small = "config.downstream_expert.datarc.batch_size=2,,config.downstream_expert.datarc.num_workers=0"
    task = ("-m", "train", "-u", "fbank_no_cmvn", "-d", "ks", "--corpora", tiny_corpora, "--device", "cpu")
    done = superbit("-q", "downstream", *task, "-p", tmp_path / "exp", "-o", f"{steps},,{small}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exp" / "states-2.ckpt").is_file() and "overall" not in done.stderr + done.stdout


def test_verbose_adds_debug_messages_and_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    usual, verbose = superbit("profile", missing), superbit("-v", "profile", missing)
    assert usual.returncode == 2 and usual.stderr.startswith("superbit: ") and usual.stderr.count("\n") == 1
    assert verbose.returncode == 2 and "Traceback" in verbose.stderr and "UserError" in verbose.stderr
    assert "runners.cli.console: command: " in verbose.stderr


def test_they_exclude_each_other() -> None:
    done = superbit("-q", "-v", "profile", "transformer_mini")
    assert done.returncode == 2 and done.stderr.startswith("superbit: --quiet and --verbose exclude each other")
