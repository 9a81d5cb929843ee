"""Upstreams of other people's modules in a matrix: their costs, and results of changed code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runners.features.code import code_digest
from runners.matrix import run as matrix
from runners.matrix.identity import origin
from runners.matrix.run import Options
from runners.report.table import collect
from runners.report.text import as_markdown
from tests.runners.downstream.experiments import few_steps
from tests.runners.matrix.fake_ray import FakeRay
from tests.runners.matrix.fakes import FakeDownstream, write_matrix
from upstreams.cost import SUPERB_SAMPLES
from upstreams.errors import UserError
from upstreams.files import read_json

MODULES = ["my_package.module"]


def test_upstreams_of_a_module_are_rows_with_costs_where_all_layers_are_known(
    package: Path,
    tiny_corpora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale = tmp_path / "scale.txt"
    scale.write_text("2.0")
    content: dict[str, Any] = {
        "upstreams": [{"name": "an_upstream_of_mine", "ckpt": str(scale)}, "a_recurrent_one", "fbank"],
        "upstream_modules": MODULES,
        "tasks": {"ic": few_steps("ic", steps=2)},
        "seeds": [1],
        "device": "cpu",
    }
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    assert matrix.evaluate(file, tiny_corpora, runs) == 0, capsys.readouterr().out
    found = {path.parts[-4]: read_json(path) or {} for path in runs.glob("cells/*/*/*/results.json")}
    linear = found["an_upstream_of_mine"]
    assert linear["parameters"] == 641 * 16 and linear["storage_bytes"] == 4 * 641 * 16
    assert linear["macs"] == sum(round(samples / 640) * 640 * 16 for samples in SUPERB_SAMPLES)
    recurrent = found["a_recurrent_one"]
    assert recurrent["macs"] is None and recurrent["parameters"] > linear["parameters"]
    rows = [line for line in as_markdown(collect([runs]), [runs]).splitlines() if "a_recurrent_one" in line]
    assert " - " in rows[0] and "None" not in rows[0]

    # Another module in the package makes the results of its upstreams those of other code, and no others.
    (package / "helper.py").write_text("changed = True\n")
    origin.cache_clear()
    code_digest.cache_clear()
    capsys.readouterr()
    assert matrix.evaluate(file, tiny_corpora, runs, options=Options(dry_run=True, rerun_stale=True)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "other code of the upstream" in printed and "2 of 3 trainings to run" in printed


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["slurm", "ray as a stand-in", "ray"])
def test_upstreams_of_a_module_in_the_current_folder_run_on_clusters(
    engine: str, package: Path, tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content: dict[str, Any] = {
        "upstreams": ["an_upstream_of_mine"],
        "upstream_modules": MODULES,
        "tasks": {"ic": few_steps("ic", steps=2)},
        "seeds": [1],
        "device": "cpu",
        "slurm": {"cluster": "local", "timeout_min": 10},
    }
    if engine == "ray as a stand-in":
        monkeypatch.setitem(sys.modules, "ray", FakeRay(tmp_path / "tasks"))
    else:
        pytest.importorskip("submitit" if engine == "slurm" else "ray")
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    options = Options(engine=engine.partition(" ")[0])
    log = runs / "cells/an_upstream_of_mine/ic/seed1/log.txt"
    assert matrix.evaluate(file, tiny_corpora, runs, options=options) == 0, log.read_text()
    result = read_json(log.with_name("results.json")) or {}
    assert result["parameters"] == 641 * 16 and "--upstream-module my_package.module" in result["train_command"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upstream_modules": "my_package.module"}, "upstream_modules must be a list of names of Python modules"),
        ({"upstream_modules": ["my_package.none"], "upstreams": ["mine"]}, r"no module my_package\.none"),
        ({"upstream_modules": ["nothing"], "upstreams": ["mine"]}, "there is no module nothing"),
        ({"upstream_modules": MODULES, "upstreams": ["an_upstream_of_mne"]}, "did you mean 'an_upstream_of_mine'"),
        ({"upstreams": [{"name": "fbank", "ckpt": __file__}]}, "fbank does not read -k"),
        ({"upstreams": ["hubert_local"]}, "hubert_local needs a checkpoint"),
    ],
)
def test_modules_and_upstreams_are_checked_before_anything_runs(
    changes: dict[str, Any],
    message: str,
    package: Path,
    corpora: Path,
    tmp_path: Path,
    fake: FakeDownstream,
) -> None:
    with pytest.raises(UserError, match=message):
        matrix.evaluate(write_matrix(tmp_path / "m.yaml", **changes), corpora, tmp_path / "runs")
    assert not fake.calls_made()
