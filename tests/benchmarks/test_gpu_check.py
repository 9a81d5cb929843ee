"""`make gpu-check`: its parts at a small scale on the CPU, and its answer where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu_check
from benchmarks.gpu_parts import PARTS, Row, Scale

TINY = Scale(
    models=("sparseformer_dn_mini",),
    rivals=False,
    crops=2,
    seconds=1.0,
    repeats=1,
    compiled=False,
    packed="sparseformer_dn_mini",
)


def test_the_parts_run_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the SUPERB task, which needs corpora."""
    compile_module = nn.Module.compile
    # The generated code of `graphs` would take minutes; the graphs are the same.
    monkeypatch.setattr(nn.Module, "compile", lambda module, **more: compile_module(module, backend="eager", **more))
    gpu_check.check(torch.device("cpu"), TINY, tmp_path, [name for name in PARTS if name != "task"])
    content = json.loads((tmp_path / "gpu-check.json").read_text())
    assert content["failed"] == {}
    rows = {(row["part"], row["name"]): row for row in content["rows"]}
    assert {part for part, _ in rows} == {"agreement", "waits", "graphs", "steps", "utilisation", "binary", "packed"}
    assert rows["agreement", "conformer_mini"]["value"] == 0
    assert rows["graphs", "sparseformer_dn_mini, breaks"]["value"] == 0
    assert rows["steps", "sparseformer_dn_mini"]["value"] > 0
    line = "| agreement | conformer_mini | 0 | deviations | at most 0.01: reached |"
    assert line in (tmp_path / "gpu-check.md").read_text()


def test_a_failed_part_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> list[Row]:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(PARTS, "waits", breaks)
    monkeypatch.setitem(PARTS, "steps", lambda *_: [Row("steps", "x", 2.0, "times")])
    assert not gpu_check.check(torch.device("cpu"), TINY, tmp_path, ["waits", "steps"])
    text = (tmp_path / "gpu-check.md").read_text()
    assert "waits failed: RuntimeError: no kernel image is available" in text and "| steps | x | 2 | times |" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "gpu-check measures a GPU, but torch" in done.stderr and len(done.stderr.splitlines()) == 1
