"""Run folders that were moved, and reports on several of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from typer.testing import CliRunner

from runners.cli import app
from runners.report.layer_weights import layer_weights
from runners.report.table import collect
from runners.report.write import default_folder
from tests.runners.report.fake_cells import REAL, write_cell


def test_a_moved_run_folder_keeps_its_layer_weights_predictions_and_commands(tmp_path: Path) -> None:
    first, moved = tmp_path / "first place", tmp_path / "elsewhere" / "runs"
    cell = first / "cells/mine/ks/seed1"
    state = cell / "lr0.01/expdir/dev-best.ckpt"
    state.parent.mkdir(parents=True)
    torch.save({"Featurizer": {"weights": torch.zeros(2)}}, state)
    (state.parent / "test_predict.txt").write_text("yes")
    command = (
        f"superbit downstream -m evaluate -t test -e '{state}' -k '{first}/checkpoints/mine.safetensors' -o a=/data"
    )
    write_cell(first, "mine", "ks", 1, 0.5, command=command, expdir="lr0.01/expdir", **REAL)
    assert collect([first]).results[0]["command"] == command
    moved.parent.mkdir()
    shutil.move(first, moved)
    table = collect([moved])
    assert layer_weights(table, "mine") == {"ks": [0.5, 0.5]}
    assert table.results[0]["command"] == (
        f"superbit downstream -m evaluate -t test -e {moved}/cells/mine/ks/seed1/lr0.01/expdir/dev-best.ckpt"
        f" -k {moved}/checkpoints/mine.safetensors -o a=/data"
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["submission", str(moved), "--upstream", "mine", "--out", str(out)])
    assert done.exit_code == 0, done.exception
    assert (out / "predict/ks_public/predict.txt").read_text() == "yes"


def test_a_report_on_two_run_folders_leaves_the_first_ones_own_report_alone(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_cell(a, "mine", "ks", 1, 0.5)
    write_cell(b, "mine", "ks", 2, 0.6)
    (a / "report").mkdir()
    (a / "report/table.md").write_text("a's own")
    done = CliRunner().invoke(app, ["report", str(a), str(b)])
    assert done.exit_code == 0, done.exception
    assert (a / "report/table.md").read_text() == "a's own" and [p.name for p in (a / "report").iterdir()] == [
        "table.md"
    ]
    assert "55.00 ± 7.07" in (tmp_path / "report_a_b/table.md").read_text()
    assert default_folder([a]) == a / "report"
