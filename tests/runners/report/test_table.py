"""Collect cells into a table: what is refused, what is comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners.report.published import published, superb_score
from runners.report.table import collect
from upstreams.errors import UserError


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has no results"):
        collect([tmp_path / "nothing"])


def test_superb_score_is_linear_from_fbank_to_the_best_published_figures() -> None:
    rows = {row["name"]: row for row in published()["rows"]}
    assert superb_score(rows["FBANK"]) == pytest.approx(0)
    best = {"pr": 3.06, "asr": 3.36, "ks": 97.89, "sid": 95.49, "er": 70.68, "ic": 99.34, "sf": 92.21, "sf_cer": 18.01}
    assert superb_score(best) == pytest.approx(1000)
    # By hand: the mean of (82.01 - 5.41) / (82.01 - 3.06), and so on.
    hubert = (
        *(76.60 / 78.95, 16.76 / 19.82, 87.67 / 89.26, 81.41915 / 95.48915, 29.53 / 35.29, 89.24 / 90.24),
        (18.89 / 22.57 + 27.74 / 34.93) / 2,
    )
    assert superb_score(rows["HuBERT Base"]) == pytest.approx(1000 * sum(hubert) / 7)
    assert superb_score({"pr": 1.0}) is None
