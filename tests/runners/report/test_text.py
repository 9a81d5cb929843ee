"""The table as Markdown, CSV and console output."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from runners.report.table import collect
from runners.report.text import CSV_COLUMNS, as_markdown, print_table
from runners.report.write import report
from runners.tasks import SEVEN, TASKS
from tests.runners.report.fake_cells import UPSTREAMS, write_cell, write_runs
from upstreams.errors import UserError


def rows(markdown: str, heading: str) -> dict[str, list[str]]:
    """Return the table after a heading: first column -> the other columns."""
    section = markdown.split(heading, 1)[1].split("\n#", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_a_report_with_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    path = report([runs])
    assert path == runs / "report" / "table.md"
    text = path.read_text()

    table = rows(text, "# SUPERB tasks")
    assert list(table) == ["upstream", ":--", *UPSTREAMS], "rows in the order of the matrix"
    assert table["upstream"] == [
        *("ASR wer ↓", "PR per ↓", "ER (synthetic) acc ↑", "parameters", "MACs", "storage", "score")
    ]
    assert table["tiny_mini"][:3] == ["**90.00**", "**70.00**", "**60.00**"]
    assert table["fbank_no_cmvn"] == ["99.00", "90.00", "30.00", "0", "480 M", "0 B", "13.7"], "all in percent"
    assert table["tiny_mini"][3:] == ["1.7 M", "480 M", "6.8 MB", "33.3"]
    assert "Seeds: 1 (one seed, so no spread is known)" in text
    assert "Speech: real in ASR, PR; synthetic in ER." in text
    assert "The ER labels are synthetic: made up." in text

    gains = rows(text, "## Against fbank_no_cmvn")
    assert gains["tiny_mini"] == ["+9.00", "+20.00", "+30.00", "3 of 3"], "positive is better, also for error rates"
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
        "value_percent": "99.0" if cells[0]["task"] == "asr" else "90.0",
        "higher_is_better": "False",
        "parameters": "0",
        "macs": "480000000",
        "storage_bytes": "0",
        "seconds_training": "10.25",
        "seconds_test": "1.5",
        "seed": "1",
        "learning_rate": "",
        "checkpoint_sha256": "",
        "commit": "c0ffee" * 6,
        "torch": "2.13.0",
        "torchaudio": "",
        "s3prl": "",
        "device": "cpu",
        "machine": "x86_64, Some Processor, 2 cores",
        "deviations": cells[0]["deviations"],
        "train_command": "superbit downstream -m train",
        "command": f"superbit downstream -m evaluate -e fbank_no_cmvn/{cells[0]['task']}/1",
    }


def test_run_folders_with_different_seeds_are_pooled(tmp_path: Path) -> None:
    folders = [write_runs(tmp_path / f"runs{seed}", seed, shift=0.01 * seed) for seed in (1, 2, 3)]
    text = as_markdown(collect(folders), folders)
    assert rows(text, "# SUPERB tasks")["tiny_mini"][1] == "**72.00 ± 1.00**"
    assert "Seeds: 1, 2, 3 (mean ± standard deviation over the seeds)" in text
    # Both upstreams have the same shift for each seed: paired by seed, the gain has no deviation.
    assert rows(text, "## Against fbank_no_cmvn")["tiny_mini"][1] == "+20.00 ± 0.00"
    with pytest.raises(UserError, match=r"both contain .* seed 1"):
        collect([folders[0], folders[0]])


def test_unknown_costs_are_dashes(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    for task in ("asr", "pr", "er"):
        write_cell(runs, "hubert", task, 1, 0.5, parameters=None, macs=None, storage_bytes=None)
    assert rows(as_markdown(collect([runs]), [runs]), "# SUPERB tasks")["hubert"][3:6] == ["-", "-", "-"]


def test_equal_figures_are_all_best_and_a_narrow_terminal_truncates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for label in ("one_with_quite_a_long_name", "another"):
        for task in SEVEN:
            write_cell(tmp_path, label, task, 1, 0.25)
    table = rows(as_markdown(collect([tmp_path]), [tmp_path]), "# SUPERB tasks")
    print_table(collect([tmp_path]))
    assert table["another"][1] == table["one_with_quite_a_long_name"][1] == "**25.00**"
    printed = capsys.readouterr().out
    assert "one_with_quite_a_long_name" in printed
    assert "slot_type_f1" in printed
    assert "…" not in printed
