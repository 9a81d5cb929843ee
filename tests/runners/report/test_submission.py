"""The leaderboard's upload, and TensorBoard on a run folder."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from typer.testing import CliRunner

from runners.cli import app
from runners.report.submission import FILES
from tests.runners.report.fake_cells import REAL, write_cell
from upstreams.errors import UserError


def cells_with_predictions(runs: Path) -> None:
    for task, (_, source, _) in list(FILES.items())[:7]:  # the seven
        expdir = runs / "cells/mine" / task / "seed1/expdir"
        expdir.mkdir(parents=True)
        (expdir / source.format(fold="fold1")).write_text(f"predictions of {task}\n")
        config = {"downstream_expert": {"datarc": {"test_fold": "fold1"}}, "optimizer": {"lr": 1.0}}
        identity = {"config": config, "corpus_sha256": None}
        write_cell(runs, "mine", task, 1, 0.5, identity=identity, **REAL)


def test_a_submission_has_the_layout_of_s3prl(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    cells_with_predictions(runs)
    done = CliRunner().invoke(app, ["submission", str(runs), "--upstream", "mine", "--out", str(out)])
    assert done.exit_code == 0, done.exception
    assert "1 of 5 folds" in done.stdout
    with zipfile.ZipFile(out / "predict.zip") as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        assert archive.read("predict/pr_public/predict.ark") == b"predictions of pr\n"
    assert names == {
        *("predict/pr_public/predict.ark", "predict/asr_public/predict.ark", "predict/sf_public/predict.ark"),
        *("predict/sid_public/predict.txt", "predict/ks_public/predict.txt", "predict/ic_public/predict.csv"),
        "predict/er_fold1_public/predict.txt",
    }
    (runs / "cells/mine/ks/seed1/expdir/test_predict.txt").unlink()
    shutil.rmtree(runs / "cells/mine/sf")
    missing = "ks/seed1/expdir/test_predict.txt, the predictions of mine/ks, is missing"
    for arguments, words in (((), missing), (("--seed", "7"), "no result of seed 7")):
        done = CliRunner().invoke(app, ["submission", str(runs), "--upstream", "mine", "--out", str(out), *arguments])
        assert isinstance(done.exception, UserError) and words in str(done.exception)
    done = CliRunner().invoke(app, ["submission", str(runs), "--upstream", "mime", "--out", str(out)])
    assert "did you mean 'mine'" in str(done.exception)


def test_board_refuses_a_missing_folder(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["board", str(tmp_path / "none")])
    assert isinstance(done.exception, UserError) and "does not exist" in str(done.exception)
