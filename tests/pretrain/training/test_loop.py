"""The training loop on a toy task: accumulation, resuming, gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.training import state
from pretrain.training.settings import TrainingSettings
from tests.pretrain.command import equal
from tests.pretrain.toy import SETTINGS, Toy
from upstreams.errors import UserError


def remove_states_after(folder: Path, step: int) -> None:
    """Make the folder that of a run killed after `step`."""
    for saved in state.States(folder).saved():
        if saved.step > step:
            saved.path.unlink()


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, optimizer="adamw", decay="cosine", ema=0.8)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, settings: TrainingSettings) -> None:
    whole = Toy(replace(settings, keep=9)).run(tmp_path / "a")
    remove_states_after(tmp_path / "a", 10)
    assert equal(Toy(settings).run(tmp_path / "a"), whole)
    assert equal(Toy(settings).run(tmp_path / "a"), whole)  # a finished run returns the same weights


def test_states_are_saved_by_time_as_well(tmp_path: Path) -> None:
    whole = Toy(SETTINGS).run(tmp_path / "a")
    by_time = replace(SETTINGS, save_every=1000, save_minutes=1e-9, keep=30)
    assert equal(Toy(by_time).run(tmp_path / "b"), whole)
    assert [saved.step for saved in state.States(tmp_path / "b").saved()] == list(range(1, 21))
    remove_states_after(tmp_path / "b", 13)
    assert equal(Toy(replace(by_time, save_minutes=60)).run(tmp_path / "b"), whole)


def test_gradients_of_micro_batches_add_up_to_those_of_one_batch(tmp_path: Path) -> None:
    """Also if the micro-batches have different sizes."""
    toy = Toy(SETTINGS)
    toy.module["blocks"] = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8))  # type: ignore[operator]
    batches = [b for b, _ in zip(toy.batches(0), range(4), strict=False)]
    assert len({len(b) for b in batches}) == 4
    totals = torch.tensor([float(sum(len(b) for b in batches))])
    for batch in batches:
        toy.loss(batch, totals)[0].backward()
    parts = [p.grad.clone() for p in toy.module.parameters() if p.grad is not None]
    toy.module.zero_grad()
    toy.loss(torch.cat(batches), totals)[0].backward()
    for part, p in zip(parts, toy.module.parameters(), strict=True):
        torch.testing.assert_close(part, p.grad)


def test_steps_without_a_finite_gradient_are_skipped_and_counted(tmp_path: Path) -> None:
    toy = Toy(replace(SETTINGS, max_skipped=4), nan_steps=range(7, 10))
    skipped = toy.run(tmp_path)
    assert all(torch.isfinite(value).all() for value in skipped.values())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("skipped_steps")] == [0, 3, 3]
    remove_states_after(tmp_path, 10)
    assert equal(Toy(replace(SETTINGS, max_skipped=4), nan_steps=range(7, 10)).run(tmp_path), skipped)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 58)])
def test_a_cpu_without_memory_ends_in_one_sentence_and_the_run_resumes(
    allocate: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Toy(SETTINGS).run(tmp_path / "whole")
    loss, calls = Toy.loss, [0]

    def greedy(toy: Toy, prepared: torch.Tensor, totals: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        calls[0] += 1
        if calls[0] == 1 + 7 * SETTINGS.micro_batches:
            allocate()
        return loss(toy, prepared, totals)

    monkeypatch.setattr(Toy, "loss", greedy)
    with pytest.raises(UserError, match=r"the memory of the CPU is too small for step 7 .* lower micro_batch_seconds"):
        Toy(SETTINGS).run(tmp_path / "again")
    assert equal(Toy(SETTINGS).run(tmp_path / "again"), whole)


def test_other_errors_of_a_step_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "loss", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        Toy(SETTINGS).run(tmp_path)


def test_too_many_consecutive_skipped_steps_stop_the_training(tmp_path: Path) -> None:
    message = r"stopped at step 9: 4 consecutive steps .* first bad gradient in blocks\.0\.weight"
    with pytest.raises(UserError, match=message):
        Toy(replace(SETTINGS, max_skipped=4), nan_steps=range(6, 20)).run(tmp_path)
    newest = state.States(tmp_path).newest()
    assert newest is not None and state.load(newest)["step"] == 5
