"""The diarization error rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runners.downstream.scoring import diarization
from upstreams.errors import UserError


def test_the_diarization_error_rate_by_hand() -> None:
    reference = {"A": [(0.0, 2.0)], "B": [(1.0, 3.0)]}
    cases: list[tuple[diarization.Segments, float]] = [
        ({"x": [(1.0, 3.0)], "y": [(0.0, 2.0)]}, 0.0),  # speakers' names do not matter
        ({"x": [(0.0, 1.0)], "y": [(1.0, 3.0)]}, 1.0),  # A is missed in the overlap
        ({"x": [(0.0, 3.0)]}, 2.0),  # one second of missed overlap and one of confusion
        ({"x": [(0.0, 2.0)], "y": [(1.0, 3.5)]}, 0.5),  # half a second of false alarm
        ({"x": [(0.0, 2.0), (0.5, 1.0)], "y": [(1.0, 3.0)]}, 0.0),  # one speaker's segments may overlap
        ({}, 4.0),
    ]
    for hypothesis, seconds in cases:
        assert diarization.errors(reference, hypothesis) == pytest.approx((seconds, 4.0)), hypothesis
    assert diarization.errors({}, {"x": [(0.0, 1.0)]}) == (1.0, 0.0)


def test_frames_become_segments() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.6], [0.2, 0.9], [0.9, 0.9], [0.9, 0.9]])
    assert diarization.segments(probabilities, 0.5, 1, 0.02) == {
        "0": [pytest.approx((0.0, 0.04)), pytest.approx((0.06, 0.1))],
        "1": [pytest.approx((0.02, 0.1))],
    }
    assert len(diarization.segments(probabilities, 0.5, 3, 0.02)["0"]) == 1, "the filter closes a gap of one frame"
    assert diarization.segments(probabilities, 0.95, 1, 0.02) == {"0": [], "1": []}


def test_the_lowest_rate_of_all_thresholds_counts(tmp_path: Path) -> None:
    import h5py

    (tmp_path / "rttm").write_text(
        "SPEAKER one 1 0.00 0.50 <NA> <NA> a <NA>\nSPEAKER one 1 0.50 0.50 <NA> <NA> b <NA>\n"
    )
    certain = np.repeat([[0.65, 0.35], [0.35, 0.65]], 50, axis=0)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["T_hat"] = certain
    assert diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01) == pytest.approx(0)
    (tmp_path / "rttm").write_text("SPEAKER two 1 0.00 0.50 <NA> <NA> a <NA>\n")
    assert diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01) == 1, "without a prediction all is missed"
    (tmp_path / "rttm").write_text("SPEAKER two 1 zero 0.50 <NA> <NA> a <NA>\n")
    with pytest.raises(UserError, match="rttm, line 1: expected"):
        diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01)
    (tmp_path / "rttm").write_text("")
    with pytest.raises(UserError, match="holds no speech"):
        diarization.error_rate(tmp_path, tmp_path / "rttm", 0.01)
