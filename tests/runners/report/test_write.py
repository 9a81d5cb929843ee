"""What a report consists of, and the real-time factors it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runners.report.write import read_speeds, report
from tests.runners.report.fake_cells import write_cell, write_runs
from upstreams.errors import UserError


def test_a_report_has_every_file_and_no_picture_of_an_earlier_one(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    out = report([runs]).parent
    files = {"table.md", "table.csv", "table.tex", "report.html", "score_storage.png", "tensorboard"}
    assert {path.name for path in out.iterdir()} == files
    # One more task, which no row with a known storage has: no row has both a score and a storage.
    write_cell(runs, "hubert", "ks", 1, 0.5, storage_bytes=None)
    report([runs])
    assert {path.name for path in out.iterdir()} == files - {"score_storage.png"}


def test_speeds_are_read_from_profiles_and_benchmarks(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    rows = [
        {"name": "a/fp32", "real_time_factor": 0.5},
        {"name": "a/w1a1", "real_time_factor": 0.1},
        {"name": "a/fp32", "real_time_factor": 9},
    ]
    path.write_text(json.dumps({"rows": rows}))
    assert read_speeds(path) == {"a": 0.5, "a_w1a1": 0.1}
    path.write_text(json.dumps([{"name": "b", "real_time_factor": 2}]))
    assert read_speeds(path) == {"b": 2.0}
    path.write_text("[1]")
    with pytest.raises(UserError, match="name and real_time_factor"):
        read_speeds(path)
