"""The term-weighted value of query-by-example."""

from __future__ import annotations

import pytest

from runners.downstream.scoring import detection
from upstreams.errors import UserError


def test_the_term_weighted_value_by_hand() -> None:
    # Two queries, four utterances; the best threshold misses one utterance of query b and gives no false alarm.
    scores = {
        "a": {"1": 0.9, "2": 0.8, "3": 0.1, "4": 0.2},
        "b": {"1": 0.3, "2": 0.85, "3": 0.4, "4": 0.1},
        "nowhere": {"1": 5.0, "2": 5.0, "3": 5.0, "4": 5.0},
    }
    truth = {"a": {"1", "2"}, "b": {"2", "4"}}
    assert detection.mtwv(scores, truth) == pytest.approx(1 - (0 + 1 / 2) / 2)
    # A threshold of 0.3 or less costs beta / 2 for each false alarm, which is never worth it.
    assert pytest.approx(12.49) == detection.BETA
    assert detection.mtwv({"a": {"1": 0.1, "2": 0.9}}, {"a": {"1"}}) == 0, "detecting nothing is best"
    # Equal scores are detected together.
    assert detection.mtwv({"a": {"1": 0.5, "2": 0.5}}, {"a": {"1"}}) == 0
    assert detection.mtwv({"a": {"1": 0.5}}, {"a": {"1"}}) == 1
    with pytest.raises(UserError, match="none of the queries occurs"):
        detection.mtwv(scores, {"c": {"1"}})
