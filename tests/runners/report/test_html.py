"""The report as a page: its structure, and its behaviour in a real browser if one is installed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from runners.report.published import superb_score
from runners.report.table import collect
from runners.report.write import report
from runners.tasks import SEVEN, TASKS
from tests.runners.report.fake_cells import REAL, five_folds, write_cell, write_runs

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

# Runs in the page: click a column title twice and a number once, and record what is visible.
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


def in_browser(page: str, folder: Path, probe: str, width: int) -> dict[str, Any]:
    """Return what a probe saw in the page, in a window of that width (CSS pixels)."""
    probed = folder / "probed.html"
    probed.write_text(page.replace("<head>", "<head>" + probe))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        f"--user-data-dir={folder}/profile",
        "--dump-dom",
        probed.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


# Names and rows of `make superb` on the published corpora, over three seeds.
NAMES = ["fbank_no_cmvn", "sparseformer_dn_mini_untrained", "sparseformer_dn_mini", "sparseformer_dn_mini_w1a32"]
WIDTHS = """
<script>
addEventListener("load", () => {
  const scrolls = id => { const box = document.getElementById(id).parentElement;
    return [box.scrollWidth, box.clientWidth]; };
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify({width: innerWidth, ours: scrolls("ours"), published: scrolls("published"),
    comparison: scrolls("comparison-1")});
  document.body.append(result);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_no_table_of_the_page_scrolls_sideways_on_a_screen_of_1280_pixels(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for label in NAMES:
        for task in SEVEN:
            for seed, value in enumerate((0.5, 0.61, 0.72)):
                folds = five_folds(100 * value) if task == "er" else {}
                metrics = {TASKS[task].metric: value} | ({"slot_value_cer": 0.3} if task == "sf" else {})
                percent = 100 if task == "asr" else 1
                write_cell(runs, label, task, seed, percent * value, s3prl_metrics=metrics, **REAL, **folds)
    report([runs], speeds=dict.fromkeys(NAMES, 0.0125))
    page = (runs / "report/report.html").read_text()
    assert "superb_s" in page.split("</thead>")[0] and "61.00 ±\u00a011.00" in page
    seen = in_browser(page, tmp_path, WIDTHS, 1280)
    assert seen["width"] == 1280
    for table in ("ours", "published", "comparison"):
        needed, visible = seen[table]
        assert needed <= visible, f"{table} needs {needed} pixels of {visible}"


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    report([runs])
    page = (runs / "report/report.html").read_text()
    assert not re.search(r"""(src|href)=["\']?(https?:)?//""", page), "the page loads nothing from elsewhere"
    seen = in_browser(page, tmp_path, PROBE, 1300)
    assert seen["errors"] == []
    assert seen["ascending"] == ["90.00", "95.00", "98.00", "99.00"] == seen["descending"][::-1]
    assert seen["names"] == sorted(seen["before"])
    assert len(seen["boxes"]) >= 3 and all(width > 200 and height > 100 for width, height in seen["boxes"])
    assert seen["opened"] and seen["command"].startswith("superbit downstream -m evaluate -e ")
    assert not seen["overflow"], "wide tables scroll on their own"


class Structure(HTMLParser):
    """Collects ids and links, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)
        if tag in ("details", "table"):
            self.ids.append(values["id"] or "")
        if tag == "a":
            self.links.append(values["href"] or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Ignore self-closing elements of the figures."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_number_of_the_page_links_to_its_origin_and_text_is_escaped(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "<runs>", seed=1)
    write_cell(runs, "<b>mine", "pr", 1, 0.5)
    report([runs], speeds={"tiny_mini": 0.25})
    page = (runs / "report/report.html").read_text()
    structure = Structure()
    structure.feed(page)
    assert not structure.open and len(set(structure.ids)) == len(structure.ids)
    assert len(structure.links) == 13 and {link.removeprefix("#") for link in structure.links} < set(structure.ids)
    assert "<b>" not in page and "&lt;b&gt;mine" in page and "&lt;runs&gt;" in page
    assert "real-time factor" in page and '<td data-value="0.25">0.2500</td>' in page


def test_page_and_latex_name_what_is_comparable(tmp_path: Path) -> None:
    embedded = write_runs(tmp_path / "embedded", seed=1)
    report([embedded])
    assert "cannot be compared" in (embedded / "report/report.html").read_text()
    assert "not comparable" in (embedded / "report/table.tex").read_text()
    real = tmp_path / "real"
    for task in SEVEN:
        metrics = {TASKS[task].metric: 0.5} | ({"slot_value_cer": 0.3} if task == "sf" else {})
        folds = five_folds(50.0) if task == "er" else {}
        write_cell(real, "mine", task, 1, 50.0 if task == "asr" else 0.5, s3prl_metrics=metrics, **REAL, **folds)
    report([real])
    page = (real / "report/report.html").read_text()
    assert "cannot be compared" not in page and "HuBERT Base" in page
    assert "HuBERT Base" in (real / "report/table.tex").read_text()
    score = collect([real]).superb_score("mine")
    figures = dict.fromkeys(("pr", "asr", "ks", "sid", "er", "ic", "sf"), 50.0) | {"sf_cer": 30.0}
    assert score == pytest.approx(superb_score(figures))
    assert collect([embedded]).superb_score("tiny_mini") is None
