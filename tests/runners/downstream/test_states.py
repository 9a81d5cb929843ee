"""The names of s3prl's training checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners.downstream.states import latest_state, step_of


def test_the_latest_state_has_the_highest_step(tmp_path: Path) -> None:
    assert latest_state(tmp_path) is None
    assert latest_state(tmp_path / "missing") is None
    for name in ("states-900.ckpt", "states-1000.ckpt", "states-5000.ckpt.tmp", "states-best.ckpt", "dev-best.ckpt"):
        (tmp_path / name).touch()
    latest = latest_state(tmp_path)
    assert latest == tmp_path / "states-1000.ckpt" and step_of(latest) == 1000


def test_other_names_have_no_step() -> None:
    for name in ("dev-best.ckpt", "best-states-dev.ckpt", "states-.ckpt", "states-1.ckpt.tmp"):
        with pytest.raises(ValueError, match="is not named"):
            step_of(Path(name))
