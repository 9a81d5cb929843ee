"""s3prl's own command line."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

from upstreams.s3prl.compat.command_line import launcher_arguments


def test_builtin_isinstance_is_kept() -> None:
    from s3prl.utility import helper

    before = builtins.isinstance
    helper.hack_isinstance()
    assert builtins.isinstance is before


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (["-m", "train", "--local-rank=1"], None, ["-m", "train", "--local_rank=1"]),
        (["--local-rank", "1", "-m", "train"], "0", ["--local_rank", "1", "-m", "train"]),
        (["-m", "train"], "1", ["-m", "train", "--local_rank", "1"]),
        (["-m", "train"], None, ["-m", "train"]),
    ],
)
def test_the_local_rank_of_each_launcher(
    given: list[str], environment: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if environment is not None:
        monkeypatch.setenv("LOCAL_RANK", environment)
    assert launcher_arguments(given) == expected


def test_the_local_rank_in_s3prls_own_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from s3prl import run_downstream

    (tmp_path / "config.yaml").write_text("{}")
    arguments = ["-m", "train", "-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path), "--local-rank=1"]
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", *arguments])
    assert run_downstream.get_downstream_args()[0].local_rank == 1
