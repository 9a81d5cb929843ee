"""The report claims no more than it knows: mixed rows, deviations from the protocol, units, what superb_s is."""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runners.cli import app
from runners.report.html import as_html
from runners.report.latex import as_latex
from runners.report.published import published
from runners.report.table import collect
from runners.report.text import as_markdown
from runners.tasks import SEVEN, TASKS
from tests.runners.report.fake_cells import REAL, five_folds, write_cell
from tests.runners.report.test_text import rows

VERSIONS = {"superbit": "0.1.0", "torch": "2.13.0", "commit": "c0ffee" * 6}


def write_row(runs: Path, label: str = "mine", **changes: Any) -> None:
    """Write the seven tasks of one upstream on the published corpora, with `changes` in all of them."""
    for task in SEVEN:
        folds = five_folds(50.0) if task == "er" else {}
        content = REAL | folds | {key: value for key, value in changes.items() if key != "folds" or task == "er"}
        metrics = {"slot_type_f1": 0.5, "slot_value_cer": 0.3} if task == "sf" else {}
        write_cell(runs, label, task, 1, 50.0 if task == "asr" else 0.5, s3prl_metrics=metrics, **content)


def test_a_row_that_mixes_checkpoints_commits_versions_or_devices_says_so_everywhere(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_cell(runs, "mixed", "asr", 1, 90.0, versions=VERSIONS)
    other = {"versions": {**VERSIONS, "torch": "2.11.0", "commit": "decaf" * 8 + "-dirty"}, "machine": "aarch64, Other"}
    other["code"] = {"features": "f00d" * 4}
    write_cell(runs, "mixed", "pr", 1, 0.8, checkpoint_sha256="dead" * 16, device="cuda (Some GPU)", **other)
    write_cell(runs, "plain", "asr", 1, 90.0, versions=VERSIONS)
    write_cell(runs, "plain", "pr", 1, 0.8, versions=VERSIONS)
    done = CliRunner().invoke(app, ["report", str(runs)])
    assert done.exit_code == 0, done.exception
    texts = {name: (runs / "report" / name).read_text() for name in ("table.md", "report.html", "table.tex")}
    for name, text in {**texts, "console": done.stdout}.items():
        said = " ".join(html.unescape(text).replace("\\", "").split())
        for sentence in (
            "mixed: the row mixes checkpoints: 5ba15ba15ba1 (asr); deaddeaddead (pr)",
            "mixed: the row mixes commits: c0ffeec0ffee (asr); decafdecafde-dirty (pr)",
            "mixed: the row mixes code: unknown (asr); features f00df00df00d (pr)",
            "mixed: the row mixes versions of torch: 2.13.0 (asr); 2.11.0 (pr)",
            "mixed: the row mixes devices: cpu (asr); cuda (Some GPU) (pr)",
            "mixed: the code of some cells differed from the commit that they name",
        ):
            assert sentence in said, name
    assert rows(texts["table.md"], "# SUPERB tasks")["mixed"][-1] == "1, 2, 3, 4, 5, 6, 7"
    assert rows(texts["table.md"], "# SUPERB tasks")["plain"][-1] == "-"


def test_rows_of_different_versions_and_folds_of_different_checkpoints_are_noted(tmp_path: Path) -> None:
    write_cell(tmp_path, "old", "ks", 1, 0.5, versions={**VERSIONS, "s3prl": "0.4.17"})
    write_cell(tmp_path, "new", "ks", 1, 0.5, versions={**VERSIONS, "s3prl": "0.4.18"})
    folds = five_folds(50.0)
    folds["folds"]["fold3"]["checkpoint_sha256"] = "dead" * 16
    write_cell(tmp_path, "folds", "er", 1, 0.5, **folds)
    text = as_markdown(collect([tmp_path]), [tmp_path])
    assert "the rows differ in versions of s3prl: unknown (folds); 0.4.18 (new); 0.4.17 (old)" in text
    assert "deaddeaddead (er seed 1 fold3)" in text


def test_a_checkpoint_for_each_seed_is_no_mixture_but_said(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_cell(tmp_path, "mine", "ks", seed, 0.5, checkpoint_sha256=f"{seed}" * 64)
        write_cell(tmp_path, "fbank", "ks", seed, 0.5)
    text = as_markdown(collect([tmp_path]), [tmp_path])
    assert "mine: seeds have checkpoints of their own" in text and "mixes checkpoints" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"deviations": ["420 recordings instead of 64721"]}, "asr, pr, ks, sid, er, ic, sf cannot be compared"),
        ({"deviations": ["optimizer.torch_optim_name SGD instead of Adam"]}, "torch_optim_name SGD instead of Adam"),
        (
            {"folds": {"fold1": five_folds(50.0)["folds"]["fold1"]}},
            "er cannot be compared with published results: 1 of",
        ),
    ],
)
def test_superb_s_needs_published_sizes_official_settings_and_five_folds(
    tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    write_row(tmp_path, **changes)
    table = collect([tmp_path])
    text = as_markdown(table, [tmp_path])
    page = as_html(table, [tmp_path], {}, {})
    if reason is None:
        assert float(rows(text, "# SUPERB tasks")["mine"][-1]) > 0 and "cannot be compared" not in page + text
        return
    assert table.superb_score("mine") is None and "superb_s" not in text.split("## Commands")[0]
    assert reason in text and "cannot be compared with the published results" in page


def test_superb_s_names_the_rows_that_define_its_1000(tmp_path: Path) -> None:
    write_row(tmp_path)
    table = collect([tmp_path])
    assert {"WavLM Large", "data2vec Large"} < {row["name"] for row in published()["rows"]}
    for text in (as_markdown(table, [tmp_path]), as_html(table, [tmp_path], {}, {})):
        assert "superb_s, 7 tasks" in text
        assert "SID 95.49 (WavLM Large)" in text and "ASR 3.36 (data2vec Large)" in text
        assert "not the leaderboard&#39;s score" in text or "not the leaderboard's score" in text


def test_every_published_figure_names_where_it_can_be_looked_up(tmp_path: Path) -> None:
    write_row(tmp_path)
    page = html.unescape(as_html(collect([tmp_path]), [tmp_path], {}, {})).split("Published results")[1]
    sources = published()["sources"]
    assert {row["source"] for row in published()["rows"]} == set(sources)
    for name, text in sources.items():
        assert "commit" in text and f"<li>{name}: {text}</li>" in page and f">{name}</td>" in page


def test_every_metric_is_in_percent_and_the_column_says_so(tmp_path: Path) -> None:
    write_row(tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    with (tmp_path / "out/table.csv").open(newline="") as file:
        assert {row["task"]: float(row["value_percent"]) for row in csv.DictReader(file)} == dict.fromkeys(SEVEN, 50.0)
    assert done.stdout.count("50.00") == len(SEVEN) and "percent" in done.stdout
    assert {task.in_percent(0.5) for task in TASKS.values()} == {0.5, 50.0} and TASKS["asr"].in_percent(99.5) == 99.5


def test_a_small_number_does_not_read_as_zero(tmp_path: Path) -> None:
    write_row(tmp_path)
    write_cell(tmp_path, "floor", "sid", 1, 8.5e-6)
    table = collect([tmp_path])
    assert ">8.5e-4<" in as_html(table, [tmp_path], {}, {}).split("Published results")[1], "FBANK on SID, as published"
    assert " 8.5e-4 " in as_latex(table)
    assert rows(as_markdown(table, [tmp_path]), "# SUPERB tasks")["floor"][3] == "8.5e-4"


def test_the_page_has_the_notes_the_seeds_and_both_comparisons_of_table_md(tmp_path: Path) -> None:
    for label in ("fbank_no_cmvn", "x_mini_untrained", "x_mini"):
        write_cell(tmp_path, label, "ks", 1, 0.5, resumed_at_step=7)
    table = collect([tmp_path])
    page, text = html.unescape(as_html(table, [tmp_path], {}, {})), as_markdown(table, [tmp_path])
    notes = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Note ")]
    for said in (
        *notes,
        "Seeds: 1 (one seed, so no spread is known)",
        "Against fbank_no_cmvn",
        "Against the untrained",
    ):
        assert said in page and said in text
    assert notes and "weights (MB)" in page and "1 MB is 10^6 bytes" in page and "1 MB is 10^6 bytes" in text


def test_the_untrained_copy_is_that_of_the_same_model(tmp_path: Path) -> None:
    names = ["conformer_m_untrained", "conformer_mini", "conformer_m", "conformer_m_w1a1", "renamed"]
    for label in names:
        write_cell(tmp_path, label, "ks", 1, 0.5, name="conformer_m_w8a8" if label == "renamed" else label)
    table = collect([tmp_path])
    copy = "conformer_m_untrained"
    assert {name: table.untrained(name) for name in names} == {
        **dict.fromkeys(names, copy),
        **dict.fromkeys(["conformer_m_untrained", "conformer_mini"]),
    }
