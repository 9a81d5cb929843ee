"""The notes of a table: what a reader must know before comparing cells."""

from __future__ import annotations

import html
import json
from pathlib import Path

from runners.report.table import collect
from runners.report.text import as_markdown
from runners.report.write import report
from tests.runners.report.fake_cells import write_cell, write_runs
from tests.runners.report.test_text import rows


def test_notes_name_what_makes_cells_incomparable(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    write_cell(runs, "late", "pr", 1, 0.9, identity={"config": {"optimizer": {"lr": 1}}, "corpus_sha256": "c1"})
    write_cell(runs, "late", "asr", 2, 100.0, best_on_dev=False, resumed_at_step=100)
    text = as_markdown(collect([runs]), [runs])
    assert "the pr cells have different configurations" in text
    assert "the pr cells used different builds of the corpora" in text
    assert "optimizer.lr 0.001 (fbank_no_cmvn, tiny_mini_untrained, tiny_mini, tiny_mini_w1a1); 1 (late)" in text
    assert "late: asr, late seed 2: the dev score never improved" in text
    assert "the asr means are over different seeds" in text
    assert "training was resumed after an interruption for late/asr" in text
    assert rows(text, "# SUPERB tasks")["late"][2] == "-", "a cell without a result has no figure"
    assert rows(text, "# SUPERB tasks")["late"][-2] == "-", "an upstream without a result for every task has no score"


def test_cells_without_a_result_are_listed_with_the_reason(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    cells = runs / "cells"
    (cells / "tiny_mini/pr/seed1/results.json").write_text('{"upstream": "tiny')
    for label, change in (("tiny_mini", {"value_percent": float("nan")}), ("tiny_mini_w1a1", {"value_percent": None})):
        path = cells / label / "er/seed1/results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    path = cells / "tiny_mini/asr/seed1/results.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "command"}))
    text = report([runs]).read_text()
    page = html.unescape((runs / "report/report.html").read_text())
    for failure in (
        "tiny_mini/pr/seed1: results.json is damaged",
        "tiny_mini/er/seed1: acc is nan, not a finite number",
        "tiny_mini_w1a1/er/seed1: acc is None",
        "tiny_mini/asr/seed1: results.json has no key 'command'",
    ):
        assert failure in text and failure in page
    assert "nan |" not in text and ">nan<" not in page
    assert collect([runs]).measured("tiny_mini", "er") is None
