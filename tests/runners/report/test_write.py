"""The report says what the cells measured, and what a reader must know before comparing them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from runners.report.write import CSV_COLUMNS, collect, report
from runners.tasks import SEVEN, TASKS
from upstreams.errors import UserError

UPSTREAMS = ["fbank_no_cmvn", "tiny_mini_untrained", "tiny_mini", "tiny_mini_w1a1"]


def write_cell(runs: Path, label: str, task: str, seed: int, value: float, **changes: Any) -> None:
    """A results.json as a cell writes it."""
    content = {
        "upstream": label,
        "task": task,
        "metric": TASKS[task].metric,
        "value": value,
        "higher_is_better": TASKS[task].higher_is_better,
        "metrics": {TASKS[task].metric: value},
        "tested": TASKS[task].best,
        "best_on_dev": True,
        "command": f"superbit downstream -m evaluate -e {label}/{task}/{seed}",
        "train_command": "superbit downstream -m train",
        "seed": seed,
        "parameters": 0 if label == "fbank_no_cmvn" else 1_700_000,
        "macs": 480_000_000,
        "storage_bytes": 0 if label == "fbank_no_cmvn" else 6_800_000,
        "corpus": {"speech": "real", "label": "as spoken"},
        "device": "cpu",
        "machine": "x86_64, 2 cores",
        "versions": {"superbit": "0.1.0", "torch": "2.13.0"},
        "seconds": {"train": 10.25, "evaluate": 1.5},
        "resumed_at_step": None,
        "identity": {"config": {"optimizer": {"lr": 0.001}}, "corpus_sha256": "c0"},
    }
    path = runs / "cells" / label / task / f"seed{seed}" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content | changes))


def write_runs(runs: Path, seed: int, shift: float = 0.0) -> Path:
    """Three tasks of four upstreams: WER in percent as s3prl has it, PER and accuracy as fractions."""
    values = {"asr": [99.0, 98.0, 90.0, 95.0], "pr": [0.90, 0.80, 0.70, 0.75], "er": [0.30, 0.50, 0.60, 0.55]}
    for task, row in values.items():
        for label, value in zip(UPSTREAMS, row, strict=True):
            made_up = {"corpus": {"speech": "synthetic", "label": "synthetic: made up"}} if task == "er" else {}
            write_cell(runs, label, task, seed, value + (100 if task == "asr" else 1) * shift, **made_up)
    (runs / "matrix.json").write_text(json.dumps({"upstreams": UPSTREAMS, "tasks": list(values), "seeds": [seed]}))
    return runs


def rows(markdown: str, heading: str) -> dict[str, list[str]]:
    """First column -> the others, of the table after a heading."""
    section = markdown.split(heading, 1)[1].split("\n#", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    path = report([runs])
    assert path == runs / "report" / "table.md"
    text = path.read_text()

    table = rows(text, "# SUPERB tasks")
    assert list(table) == ["upstream", ":--", *UPSTREAMS], "rows in the matrix's order"
    assert table["upstream"] == [
        *("ASR wer ↓", "PR per ↓", "ER (synthetic) acc ↑", "parameters", "MACs", "storage", "score")
    ]
    assert table["tiny_mini"][:3] == ["**90.00**", "**70.00**", "**60.00**"]
    assert table["fbank_no_cmvn"] == ["99.00", "90.00", "30.00", "0", "480 M", "0 B", "13.7"]
    assert table["tiny_mini"][3:] == ["1.7 M", "480 M", "6.8 MB", "33.3"]
    assert "one seed: no deviation" in text
    assert "Speech: real in ASR, PR; synthetic in ER." in text
    assert "The labels of ER are synthetic: made up." in text

    gains = rows(text, "## Against fbank_no_cmvn")
    assert gains["tiny_mini"] == ["+9.00", "+20.00", "+30.00", "3 of 3"], "positive is better for error rates too"
    assert "fbank_no_cmvn" not in gains
    gains = rows(text, "## Against the untrained copy")
    assert set(gains) == {"upstream", ":--", "tiny_mini", "tiny_mini_w1a1"}
    assert gains["tiny_mini_w1a1"] == ["+3.00", "+5.00", "+5.00", "3 of 3"]

    printed = capsys.readouterr().out
    assert "tiny_mini_w1a1" in printed

    with (runs / "report" / "table.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == list(CSV_COLUMNS)
    assert len(cells) == 12
    assert cells[0] == {
        "upstream": "fbank_no_cmvn",
        "task": cells[0]["task"],
        "metric": TASKS[cells[0]["task"]].metric,
        "value": "99.0" if cells[0]["task"] == "asr" else "0.9",
        "higher_is_better": "False",
        "parameters": "0",
        "macs": "480000000",
        "storage_bytes": "0",
        "seconds": "11.75",
        "seed": "1",
        "learning_rate": "",
        "train_command": "superbit downstream -m train",
        "command": f"superbit downstream -m evaluate -e fbank_no_cmvn/{cells[0]['task']}/1",
    }


def test_several_seeds_from_several_folders(tmp_path: Path) -> None:
    folders = [write_runs(tmp_path / f"runs{seed}", seed, shift=0.01 * seed) for seed in (1, 2, 3)]
    path = report(folders, tmp_path / "report")
    text = path.read_text()
    assert path == tmp_path / "report" / "table.md"
    assert rows(text, "# SUPERB tasks")["tiny_mini"][1] == "**72.00 ± 1.00**"
    assert "Seeds: 1, 2, 3; mean ± standard deviation" in text
    # The same shift in both: no deviation of the difference, which unpaired seeds would show.
    assert rows(text, "## Against fbank_no_cmvn")["tiny_mini"][1] == "+20.00 ± 0.00"
    with pytest.raises(UserError, match=r"both hold .* of seed 1"):
        report([folders[0], folders[0]])


def test_what_makes_cells_incomparable_is_said(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    write_cell(runs, "late", "pr", 1, 0.9, identity={"config": {"optimizer": {"lr": 1}}, "corpus_sha256": "c1"})
    write_cell(runs, "late", "asr", 2, 100.0, best_on_dev=False, resumed_at_step=100)
    text = report([runs]).read_text()
    assert "the cells of pr have different configurations" in text
    assert "the cells of pr were run on different builds of the corpora" in text
    assert "asr, late seed 2: nothing was ever best on dev" in text
    assert "the means of asr are over different seeds" in text
    assert "late/asr went on after an interruption" in text
    assert rows(text, "# SUPERB tasks")["late"][2] == "-", "a cell that was not measured is no number"
    assert rows(text, "# SUPERB tasks")["late"][-1] == "-", "nor is a score that lacks a task"


def test_an_upstream_without_known_costs_is_shown_without(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    for task in ("asr", "pr", "er"):
        write_cell(runs, "hubert", task, 1, 0.5, parameters=None, macs=None, storage_bytes=None)
    assert rows(report([runs]).read_text(), "# SUPERB tasks")["hubert"][3:6] == ["-", "-", "-"]


def test_equal_figures_are_all_best_and_nothing_is_cut_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for label in ("one_with_quite_a_long_name", "another"):
        for task in SEVEN:
            write_cell(tmp_path, label, task, 1, 0.25)
    table = rows(report([tmp_path]).read_text(), "# SUPERB tasks")
    assert table["another"][1] == table["one_with_quite_a_long_name"][1] == "**25.00**"
    printed = capsys.readouterr().out
    assert "one_with_quite_a_long_name" in printed
    assert "slot_type_f1" in printed
    assert "…" not in printed


def test_tensorboard_shows_metrics_table_and_plot(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = write_runs(tmp_path / "runs", seed=1)
    report([runs])
    report([runs])  # a second time leaves no second copy
    folder = runs / "report" / "tensorboard"
    top = EventAccumulator(str(folder))
    top.Reload()
    assert len(top.Images("score_against_storage")) == 1
    assert b"tiny_mini_w1a1" in top.Tensors("table/text_summary")[0].tensor_proto.string_val[0]
    assert (runs / "report" / "score_storage.png").read_bytes().startswith(b"\x89PNG")

    sessions = {path.parent for path in folder.glob("hparams/*/*/events*")}
    assert len(sessions) == len(UPSTREAMS)
    session = EventAccumulator(str(folder / "hparams" / "tiny_mini" / "seed1"))
    session.Reload()
    assert session.Scalars("final/pr_per")[0].value == pytest.approx(0.70)
    plugin = session.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(plugin).session_start_info
    assert start.hparams["upstream"].string_value == "tiny_mini"
    assert start.hparams["storage_bytes"].number_value == 6_800_000


def test_folders_without_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing holds no results"):
        collect([tmp_path / "nothing"])
