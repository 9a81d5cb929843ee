"""The table in LaTeX."""

from __future__ import annotations

from pathlib import Path

from runners.report.latex import as_latex, escaped
from runners.report.table import collect
from tests.runners.report.fake_cells import write_runs


def test_latex_is_escaped_and_its_rows_are_complete(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seed=1)
    more = write_runs(tmp_path / "more", seed=2, shift=0.01)
    text = as_latex(collect([runs, more]))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5 and len({row.count("&") for row in rows}) == 1
    assert r"tiny\_mini\_w1a1" in text and r"$\pm$" in text and r"\textbf{" in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert escaped("a_b & 5 % {x}") == r"a\_b \& 5 \% \{x\}"
