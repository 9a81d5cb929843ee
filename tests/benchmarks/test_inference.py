"""The inference benchmark on a small setting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import inference
from tests.upstreams.packed.models import HAS_NATIVE
from upstreams.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["inference", *arguments])
    inference.main()


@pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")
def test_three_contenders_at_one_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    setting = ("--threads", "1", "--seconds", "0.5", "--batch", "2", "--repeats", "1")
    only = ("--only", "sparseformer_dn_s/w1a1*", "sparseformer_dn_s/int8", "kernel")
    run(monkeypatch, *only, *setting, "--json", str(path), "--out", str(tmp_path))
    content = json.loads(path.read_text())
    assert content["figures"]["float output"] > 1
    rows = {row["name"].partition("/")[2]: row for row in content["rows"]}
    assert set(rows) == {"int8", "w1a1", "w1a1_runtime"}
    for row in rows.values():
        assert row["real_time_factor"] == pytest.approx(row["milliseconds"] / 1e3 / (2 * 0.5))
    assert rows["w1a1"]["megabytes"] == rows["w1a1_runtime"]["megabytes"] < rows["int8"]["megabytes"]
    assert rows["w1a1_runtime"]["peak_megabytes"] < rows["w1a1"]["peak_megabytes"]
    assert (tmp_path / "inference.png").is_file()
    assert "| sparseformer_dn_s/w1a1 |" in capsys.readouterr().out


def test_an_unknown_contender_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no contender"):
        run(monkeypatch, "--only", "transformer_bass/w1a1")
