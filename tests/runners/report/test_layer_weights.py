"""The layer weights of the tested heads."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from runners.report.layer_weights import layer_weights
from runners.report.table import collect
from runners.report.write import report
from tests.runners.report.fake_cells import write_cell


def test_layer_weights_of_the_tested_heads(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    state = runs / "cells/mine/ks/seed1/expdir/dev-best.ckpt"
    state.parent.mkdir(parents=True)
    weights = torch.tensor([0.0, 1.0, 2.0])
    torch.save({"Featurizer": {"weights": weights}, "Args": Namespace(a=1)}, state)
    write_cell(runs, "mine", "ks", 1, 0.5)
    report([runs])
    assert "layer weights of mine" in (runs / "report/report.html").read_text()

    assert layer_weights(collect([runs]), "mine")["ks"] == pytest.approx(weights.softmax(0).tolist())


def test_a_damaged_head_is_named_and_left_out_of_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        state = runs / f"cells/mine/ks/seed{seed}/expdir/dev-best.ckpt"
        state.parent.mkdir(parents=True)
        torch.save({"Featurizer": {"weights": torch.zeros(2)}, "Args": Namespace(a=1)}, state)
        write_cell(runs, "mine", "ks", seed, 0.5)
    state.write_bytes(state.read_bytes()[:-100])
    report([runs])
    assert layer_weights(collect([runs]), "mine")["ks"] == [0.5, 0.5]
    assert f"the checkpoint {state} is damaged" in caplog.text
