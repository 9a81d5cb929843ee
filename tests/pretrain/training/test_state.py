"""Training states on disk: damaged ones, which ones are kept, the lock of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.training import state
from tests.pretrain.command import equal
from tests.pretrain.toy import SETTINGS, Toy
from upstreams.errors import UserError


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_state_is_reported_and_the_previous_one_is_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Toy(SETTINGS).run(tmp_path)
    newest = state.States(tmp_path).saved()[-1].path
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[:-7]
    else:
        content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    capsys.readouterr()
    assert equal(Toy(SETTINGS).run(tmp_path), whole)
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(lines) == 1 and newest.name in lines[0]


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    states = state.States(tmp_path, keep=2)
    for step in (5, 10, 15, 20, 25):
        states.write(step, {"step": step})
    assert [s.step for s in states.saved()] == [20, 25]
    newest = states.newest()
    assert newest is not None and state.load(newest) == {"step": 25}


def test_a_folder_locked_by_another_process_is_refused(tmp_path: Path) -> None:
    with state.States(tmp_path).locked(), pytest.raises(UserError, match="another process is training in"):
        Toy(SETTINGS).run(tmp_path)
    Toy(SETTINGS).run(tmp_path)  # the lock is released
