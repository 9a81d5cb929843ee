"""s3prl's training loop: checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import upstreams.s3prl.compat  # noqa: F401


def test_the_previous_checkpoint_is_kept_until_the_new_one_is_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With max_keep, s3prl deletes the old checkpoint before it writes the new one."""
    from s3prl.downstream import runner

    old, new = tmp_path / "states-2.ckpt", tmp_path / "states-4.ckpt"
    runner.torch.save({"Step": 2}, str(old))
    runner.os.remove(str(old))
    assert old.exists()

    def fail(states: Any, path: Path) -> None:
        path.write_bytes(b"half a check")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", fail)
        runner.torch.save({"Step": 4}, str(new))
    assert list(tmp_path.iterdir()) == [old]
    assert torch.load(old) == {"Step": 2}

    runner.torch.save({"Step": 4}, str(tmp_path / "dev-best.ckpt"))
    assert old.exists()
    runner.torch.save({"Step": 4}, str(new))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "dev-best.ckpt", new]

    other = tmp_path / "other"
    other.mkdir()
    runner.os.remove(str(new))  # by a run that then stops
    runner.torch.save({"Step": 2}, str(other / "states-2.ckpt"))
    assert new.exists()
    assert runner.torch.cuda is torch.cuda and runner.os.path is os.path
