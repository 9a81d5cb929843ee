"""The report as a page, in a real browser where there is one, and its LaTeX, score and submission."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from runners.cli import app
from runners.report.latex import escaped
from runners.report.published import published, superb_score
from runners.report.submission import FILES
from runners.report.write import collect, read_speeds, report
from runners.tasks import SEVEN, TASKS
from tests.runners.report.test_write import write_cell, write_runs
from upstreams.errors import UserError

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
REAL = {"corpus": {"speech": "real", "label": "as published"}}

# Run in the page: clicks a column twice and a number once, and writes down what a person would see.
PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
console.error = (...words) => errors.push(words.join(" "));
addEventListener("load", () => {
  const column = k => [...document.querySelectorAll("#ours tbody tr")].map(row => row.cells[k].innerText);
  const seen = {before: column(0)};
  const heads = document.querySelectorAll("#ours th button");
  heads[1].click(); seen.ascending = column(1);
  heads[1].click(); seen.descending = column(1);
  heads[0].click(); seen.names = column(0);
  seen.boxes = [...document.querySelectorAll("figure svg")].map(svg => [svg.clientWidth, svg.clientHeight]);
  const link = document.querySelector("#ours td a"); link.click();
  setTimeout(() => {
    const cell = document.querySelector(link.getAttribute("href"));
    seen.opened = cell.open; seen.command = cell.querySelector("code").innerText;
    seen.overflow = document.documentElement.scrollWidth > innerWidth;
    const result = document.createElement("pre");
    result.id = "seen"; result.textContent = JSON.stringify({...seen, errors});
    document.body.append(result);
  }, 300);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    report([runs])
    page = (runs / "report/report.html").read_text()
    assert not re.search(r"""(src|href)=["\']?(https?:)?//""", page), "nothing is loaded from anywhere"
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("<head>", "<head>" + PROBE))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1300,900",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path}/profile",
        "--dump-dom",
        probed.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["errors"] == []
    assert seen["ascending"] == ["90.00", "95.00", "98.00", "99.00"] == seen["descending"][::-1]
    assert seen["names"] == sorted(seen["before"])
    assert len(seen["boxes"]) >= 3 and all(width > 200 and height > 100 for width, height in seen["boxes"])
    assert seen["opened"] and seen["command"].startswith("superbit downstream -m evaluate -e ")
    assert not seen["overflow"], "wide tables scroll by themselves"


def test_the_page_says_what_is_comparable(tmp_path: Path) -> None:
    embedded = write_runs(tmp_path / "embedded", seed=1)
    report([embedded])
    assert "cannot be compared" in (embedded / "report/report.html").read_text()
    assert "not comparable" in (embedded / "report/table.tex").read_text()
    real = tmp_path / "real"
    for task in SEVEN:
        metrics = {TASKS[task].metric: 0.5} | ({"slot_value_cer": 0.3} if task == "sf" else {})
        write_cell(real, "mine", task, 1, 50.0 if task == "asr" else 0.5, metrics=metrics, **REAL)
    report([real])
    page = (real / "report/report.html").read_text()
    assert "cannot be compared" not in page and "HuBERT Base" in page
    assert "HuBERT Base" in (real / "report/table.tex").read_text()
    score = collect([real]).superb_score("mine")
    figures = dict.fromkeys(("pr", "asr", "ks", "sid", "er", "ic", "sf"), 50.0) | {"sf_cer": 30.0}
    assert score == pytest.approx(superb_score(figures))
    assert collect([embedded]).superb_score("tiny_mini") is None


def test_the_score_is_a_line_from_fbank_to_the_best() -> None:
    rows = {row["name"]: row for row in published()["rows"]}
    assert superb_score(rows["FBANK"]) == pytest.approx(0)
    best = {"pr": 3.53, "asr": 3.62, "ks": 97.37, "sid": 90.33, "er": 68.65, "ic": 99.00, "sf": 90.58, "sf_cer": 21.20}
    assert superb_score(best) == pytest.approx(1000)
    # By hand: the mean of (82.01 - 5.41) / (82.01 - 3.53), and so on.
    hubert = (
        *(76.60 / 78.48, 16.76 / 19.56, 87.67 / 88.74, 81.41915 / 90.32915, 29.53 / 33.26, 89.24 / 89.90),
        (18.89 / 20.94 + 27.74 / 31.74) / 2,
    )
    assert superb_score(rows["HuBERT Base"]) == pytest.approx(1000 * sum(hubert) / 7)
    assert superb_score({"pr": 1.0}) is None


def test_cells_without_a_number_are_failures(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    cells = runs / "cells"
    (cells / "tiny_mini/pr/seed1/results.json").write_text('{"upstream": "tiny')
    for label, change in (("tiny_mini", {"value": float("nan")}), ("tiny_mini_w1a1", {"value": None})):
        path = cells / label / "er/seed1/results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    path = cells / "tiny_mini/asr/seed1/results.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "command"}))
    text = report([runs]).read_text()
    page = (runs / "report/report.html").read_text()
    for said in (
        "tiny_mini/pr/seed1: results.json is damaged",
        "tiny_mini/er/seed1: acc is nan, which is no result",
        "tiny_mini_w1a1/er/seed1: acc is None",
        "tiny_mini/asr/seed1: results.json lacks command",
    ):
        assert said in text and said in page
    assert "nan |" not in text and ">nan<" not in page
    assert collect([runs]).measured("tiny_mini", "er") is None


def test_layer_weights_of_the_tested_heads(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    state = tmp_path / "exp/dev-best.ckpt"
    state.parent.mkdir()
    weights = torch.tensor([0.0, 1.0, 2.0])
    torch.save({"Featurizer": {"weights": weights}, "Args": Namespace(a=1)}, state)
    write_cell(runs, "mine", "ks", 1, 0.5, command=f"superbit downstream -m evaluate -t test -e {state}")
    report([runs])
    assert "layer weights of mine" in (runs / "report/report.html").read_text()
    from runners.report.layer_weights import layer_weights

    assert layer_weights(collect([runs]), "mine")["ks"] == pytest.approx(weights.softmax(0).tolist())


def test_latex_is_escaped_and_balanced(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    write_runs(tmp_path / "more", seed=2, shift=0.01)
    report([runs, tmp_path / "more"])
    text = (runs / "report/table.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5 and len({row.count("&") for row in rows}) == 1
    assert r"tiny\_mini\_w1a1" in text and r"$\pm$" in text and r"\textbf{" in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert escaped("a_b & 5 % {x}") == r"a\_b \& 5 \% \{x\}"


def test_measured_speeds(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    rows = [
        {"name": "a/fp32", "real_time_factor": 0.5},
        {"name": "a/w1a1", "real_time_factor": 0.1},
        {"name": "a/fp32", "real_time_factor": 9},
    ]
    path.write_text(json.dumps({"rows": rows}))
    assert read_speeds(path) == {"a": 0.5, "a_w1a1": 0.1}
    path.write_text(json.dumps([{"name": "b", "real_time_factor": 2}]))
    assert read_speeds(path) == {"b": 2.0}
    path.write_text("[1]")
    with pytest.raises(UserError, match="name and real_time_factor"):
        read_speeds(path)


def cells_with_predictions(runs: Path, root: Path) -> None:
    for task, (_, source, _) in list(FILES.items())[:7]:  # the seven
        expdir = root / task
        expdir.mkdir(parents=True)
        (expdir / source.format(fold="fold1")).write_text(f"predictions of {task}\n")
        config = {"downstream_expert": {"datarc": {"test_fold": "fold1"}}, "optimizer": {"lr": 1.0}}
        identity = {"config": config, "corpus_sha256": None}
        command = f"superbit downstream -m evaluate -t test -e {expdir / 'dev-best.ckpt'}"
        write_cell(runs, "mine", task, 1, 0.5, command=command, identity=identity, **REAL)


def test_a_submission_has_s3prls_layout(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    cells_with_predictions(runs, tmp_path / "exp")
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
    (tmp_path / "exp/ks/test_predict.txt").unlink()
    shutil.rmtree(runs / "cells/mine/sf")
    for arguments, words in (((), "test_predict.txt is missing"), (("--seed", "7"), "no cell of seed 7")):
        done = CliRunner().invoke(app, ["submission", str(runs), "--upstream", "mine", "--out", str(out), *arguments])
        assert isinstance(done.exception, UserError) and words in str(done.exception)
    done = CliRunner().invoke(app, ["submission", str(runs), "--upstream", "mime", "--out", str(out)])
    assert "did you mean 'mine'" in str(done.exception)


def test_the_board_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["board", str(tmp_path / "none")])
    assert isinstance(done.exception, UserError) and "there is no folder" in str(done.exception)
