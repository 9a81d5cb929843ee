"""Provenance of a training: which earlier runs match, and the number of micro-batches of a resumed run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.training import distributed
from pretrain.training.provenance import Provenance, with_stored_micro_batches
from pretrain.training.settings import TrainingSettings
from upstreams.errors import UserError


def test_a_run_matches_if_inputs_and_settings_are_equal(tmp_path: Path) -> None:
    settings = TrainingSettings(lr=0.1)
    provenance = Provenance("recipe", settings, {"seed": 3})
    saved = json.loads(json.dumps(provenance.to_dict()))
    assert provenance.matches(saved)
    assert provenance.matches(saved | {"torch": "another version"})
    assert not provenance.matches(saved | {"seed": 4})
    assert not provenance.matches({})
    assert not Provenance("recipe", replace(settings, lr=0.2), {"seed": 3}).matches(saved)
    assert Provenance("recipe", replace(settings, workers=7, save_every=1), {"seed": 3}).matches(saved)  # no effect
    del saved["recipe"]["decay"]  # as written before the setting existed
    assert provenance.matches(saved)
    assert not provenance.is_of(tmp_path / "missing.safetensors")


def test_a_resumed_run_keeps_its_number_of_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the recipe leaves the number to the world size, and the world size changes."""
    settings = TrainingSettings(batch_seconds=6)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", lambda text: text)
    first = with_stored_micro_batches(settings, tmp_path)
    assert (first.micro_batches, first.seconds_per_micro_batch) == (2, 3.0)
    (tmp_path / "config.json").write_text('{"micro_batches": 2}')
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    assert with_stored_micro_batches(settings, tmp_path) == first
    chosen = replace(settings, micro_batch_seconds=1.5)
    assert with_stored_micro_batches(chosen, tmp_path) == chosen
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert with_stored_micro_batches(settings, tmp_path) == first
    with pytest.raises(UserError, match="has 2 micro-batches, which 4 processes cannot share"):
        distributed.micro_batches_of_rank(first.micro_batches)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"micro_batches": "2"}', b'{"micro_batches": 0}'])
def test_a_damaged_config_of_a_run_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        with_stored_micro_batches(TrainingSettings(), tmp_path)
