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
    best = {"pr": 3.53, "asr": 3.62, "ks": 97.37, "sid": 90.33, "er": 68.65, "ic": 99.00, "sf": 90.58, "sf_cer": 21.20}
    assert superb_score(best) == pytest.approx(1000)
    # By hand: the mean of (82.01 - 5.41) / (82.01 - 3.53), and so on.
    hubert = (
        *(76.60 / 78.48, 16.76 / 19.56, 87.67 / 88.74, 81.41915 / 90.32915, 29.53 / 33.26, 89.24 / 89.90),
        (18.89 / 20.94 + 27.74 / 31.74) / 2,
    )
    assert superb_score(rows["HuBERT Base"]) == pytest.approx(1000 * sum(hubert) / 7)
    assert superb_score({"pr": 1.0}) is None
