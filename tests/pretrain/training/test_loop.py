"""The training loop: accumulation, processes, states, interruptions, gradients that are not finite."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.training import distributed, state
from pretrain.training.optimizers import warm_up_decay
from pretrain.training.provenance import with_stored_micro_batches
from pretrain.training.settings import TrainingSettings
from tests.pretrain.command import superbit, weights
from tests.pretrain.toy import Toy
from upstreams.errors import UserError

CONFIG = TrainingSettings(batch_seconds=4, micro_batch_seconds=1, save_every=5, lr=0.05, matrix_lr=0.05)


def equal(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == reference.keys() and all(torch.equal(ours[k], reference[k]) for k in ours)


def forget_from(folder: Path, step: int) -> None:
    """Leave what a run that died after `step` would have left."""
    for saved in state.States(folder).saved():
        if saved.step > step:
            saved.path.unlink()


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, optimizer="adamw", decay="cosine", ema=0.8)])
def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path: Path, config: TrainingSettings) -> None:
    whole = Toy(replace(config, keep=9)).run(tmp_path / "a")
    forget_from(tmp_path / "a", 10)
    assert equal(Toy(config).run(tmp_path / "a"), whole)
    assert equal(Toy(config).run(tmp_path / "a"), whole)  # one that has ended gives the same weights again


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    """Gradients of micro-batches of different sizes add up to that of their union."""
    toy = Toy(CONFIG)
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


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_state_is_named_and_the_one_before_it_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Toy(CONFIG).run(tmp_path)
    newest = state.States(tmp_path).saved()[-1].path
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[:-7]
    else:
        content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    capsys.readouterr()
    assert equal(Toy(CONFIG).run(tmp_path), whole)
    lines = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(lines) == 1 and newest.name in lines[0]


def test_the_newest_and_the_best_states_are_kept(tmp_path: Path) -> None:
    states = state.States(tmp_path, keep=2)
    for step, loss in ((5, 3.0), (10, 1.0), (15, 2.0), (20, 2.5), (25, float("nan"))):
        states.write(step, loss, {"step": step})
    assert [(s.step, s.loss) for s in states.saved()[:2]] == [(10, 1.0), (20, 2.5)]
    assert [s.step for s in states.saved()] == [10, 20, 25]
    newest = states.newest()
    assert newest is not None and state.load(newest) == {"step": 25}


def test_steps_without_a_finite_gradient_are_skipped_and_counted(tmp_path: Path) -> None:
    toy = Toy(replace(CONFIG, max_skipped=4), nan_steps=range(7, 10))
    skipped = toy.run(tmp_path)
    assert all(torch.isfinite(value).all() for value in skipped.values())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("skipped_steps")] == [0, 3, 3]
    forget_from(tmp_path, 10)
    assert equal(Toy(replace(CONFIG, max_skipped=4), nan_steps=range(7, 10)).run(tmp_path), skipped)


def test_too_many_skipped_steps_stop_with_a_report(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"stopped at step 9: 4 consecutive steps .* first bad gradient in blocks\.0\.weight"
    ):
        Toy(replace(CONFIG, max_skipped=4), nan_steps=range(6, 20)).run(tmp_path)
    newest = state.States(tmp_path).newest()
    assert newest is not None and state.load(newest)["step"] == 5


def test_learning_rates_rise_and_fall() -> None:
    for decay in ("linear", "cosine"):
        factors = [warm_up_decay(step, 100, 0.1, decay) for step in range(100)]
        assert factors[4] == pytest.approx(0.5) and max(factors) == pytest.approx(1.0, abs=1e-3)
        assert factors[55] == pytest.approx(0.5, abs=0.01) and factors[99] < 0.02
        assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"micro_batch_seconds": 90.0}, "between 0 and batch_seconds"),
        ({"decay": "square"}, "must be linear or cosine"),
        ({"precision": "float16"}, "must be auto or float32 or bfloat16"),
        ({"ema": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingSettings(**values).check("recipe r")  # type: ignore[arg-type]


# ---- through the command line ------------------------------------------------------------------------------------

RECIPE = """
model: %s
encoder: {layers: 2, dropout: 0.1, layerdrop: 0.2}
iterations: [{layer: 0, clusters: 8, steps: %d}]
batch_seconds: 6
micro_batch_seconds: %g
crop_seconds: 1.0
save_every: %d
lr: 0.002
cluster_fraction: 1.0
objective: {utterance_layer: 1}
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def command(work: Path, out: Path, processes: int = 1) -> list[str]:
    launch = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    where = ["--manifest", work / "audio/train.tsv", "--labels", work / "run/labels", "--out", out]
    return [*launch, "-m", "superbit", "pretrain", *map(str, [out.parent / "recipe.yaml", *where])]


def checkpoint_of(out: Path) -> dict[str, torch.Tensor]:
    (path,) = (p for p in (out / "checkpoints").glob("*.safetensors") if "untrained" not in p.name)
    return {k: v for k, v in weights(path).items() if "output_" not in k}


def whole_run(work: Path, out: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    done = subprocess.run(command(work, out, processes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return checkpoint_of(out)


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours)


def kill_at_random(command: list[str], folder: Path, after: float, while_writing: bool = False) -> bool:
    """Start, then kill -9 `after` seconds from the first state or event on; False when it ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    known = set(folder.glob("events.*"))
    while process.poll() is None and not set(folder.glob("events.*")) - known:
        time.sleep(0.005)
    time.sleep(after)
    while while_writing and process.poll() is None and not list(folder.glob(".step_*.tmp")):
        time.sleep(0.0002)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # the group that start_new_session has made, workers included
    return process.wait() != 0


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [number for child in map(int, children) for number in (child, *descendants(child))]


def test_two_processes_equal_one_that_accumulates(work: Path, tmp_path: Path) -> None:
    """20 steps of a Conformer (batch normalisation, layerdrop) by torchrun; then quantization of the result."""
    (tmp_path / "recipe.yaml").write_text(RECIPE % ("conformer_mini", 20, 3, 100))
    alone, together = (whole_run(work, tmp_path / f"run{n}", n) for n in (1, 2))
    assert largest_difference(alone, together) < 1e-5
    (teacher,) = (tmp_path / "run1/checkpoints").glob("*mini.safetensors")
    (tmp_path / "distil.yaml").write_text("{steps: 4, batch_seconds: 6, micro_batch_seconds: 3, crop_seconds: 1.0}")
    options = ["--bits", "w1a1", "--manifest", work / "audio/train.tsv", "--recipe", tmp_path / "distil.yaml"]
    done = subprocess.run(
        [*TORCHRUN, "2", "-m", "superbit", "quantize", *map(str, [teacher, *options, "--out", tmp_path / "q2"])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert superbit("quantize", teacher, *options, "--out", tmp_path / "q1").returncode == 0
    assert largest_difference(checkpoint_of(tmp_path / "q1"), checkpoint_of(tmp_path / "q2")) < 1e-5


def kills(work: Path, tmp_path: Path, moments: int, steps: int) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE % ("sparseformer_sw_mini", steps, 2, 1))
    whole = whole_run(work, tmp_path / "whole")
    draw = random.Random(0)
    folder = tmp_path / "killed/pretrain/sparseformer_sw_mini/iteration1"
    killed = 0
    while killed < moments:
        ended = not kill_at_random(
            command(work, tmp_path / "killed"), folder, draw.uniform(0.0, 0.5), while_writing=killed % 3 == 2
        )
        assert not ended, f"it was over after {killed} kills: more steps are needed"
        killed += 1
    assert equal(whole_run(work, tmp_path / "killed"), whole)


def test_killed_three_times(work: Path, tmp_path: Path) -> None:
    kills(work, tmp_path, 3, 50)


@pytest.mark.slow
def test_killed_twenty_times(work: Path, tmp_path: Path) -> None:
    kills(work, tmp_path, 20, 300)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_inside_a_step_saves_and_ends_as_it_asks(
    work: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE % ("sparseformer_sw_mini", 5000, 1, 10_000))
    process = subprocess.Popen(command(work, tmp_path / "run"), stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "run/pretrain/sparseformer_sw_mini/iteration1"
    while not list(folder.glob("events.*")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2.0)
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert time.monotonic() - sent < 10
    newest = state.States(folder).newest()
    assert newest is not None and 0 < state.load(newest)["step"] < 5000


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(work: Path, tmp_path: Path) -> None:
    """Two processes, killed; then one, killed; then two: as one that was never stopped, but for rounding."""
    # The number of micro-batches is that of the processes that the run begins with.
    (tmp_path / "recipe.yaml").write_text(RECIPE % ("conformer_mini", 40, 0, 1))
    whole = whole_run(work, tmp_path / "whole", 2)
    folder = tmp_path / "elastic/pretrain/conformer_mini/iteration1"
    for processes, step in ((2, 10), (1, 20)):
        process = subprocess.Popen(command(work, tmp_path / "elastic", processes), start_new_session=True)
        while process.poll() is None and not any(s.step >= step for s in state.States(folder).saved()):
            time.sleep(0.02)
        assert process.poll() is None
        for number in [process.pid, *descendants(process.pid)]:  # torchrun's processes are in groups of their own
            os.kill(number, signal.SIGKILL)
        process.wait()
    assert largest_difference(whole_run(work, tmp_path / "elastic", 2), whole) < 1e-5


@pytest.mark.slow
def test_compiled_blocks_train_alike(work: Path, tmp_path: Path) -> None:
    losses = []
    for name, more in (("plain", ""), ("compiled", "compile: true\n")):
        recipe = RECIPE.replace("dropout: 0.1, ", "") % ("transformer_mini", 3, 3, 100)  # a compiler draws otherwise
        (tmp_path / "recipe.yaml").write_text(recipe + more)
        whole_run(work, tmp_path / name)
        events = EventAccumulator(str(tmp_path / name / "pretrain/transformer_mini/iteration1"))
        events.Reload()
        losses.append([event.value for event in events.Scalars("loss")])
    # Weights may differ more: the first updates amplify gradients that are nearly zero.
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    with state.States(tmp_path).locked(), pytest.raises(UserError, match="another process is training in"):
        Toy(CONFIG).run(tmp_path)
    Toy(CONFIG).run(tmp_path)  # once the other one has ended


def test_a_run_keeps_the_micro_batches_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a recipe leaves their number to the processes, another number of them goes on with the same ones."""
    config = TrainingSettings(batch_seconds=6)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", lambda text: text)
    first = with_stored_micro_batches(config, tmp_path)
    assert (first.micro_batches, first.seconds_per_micro_batch) == (2, 3.0)
    (tmp_path / "config.json").write_text('{"micro_batches": 2}')
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    assert with_stored_micro_batches(config, tmp_path) == first
    chosen = replace(config, micro_batch_seconds=1.5)
    assert with_stored_micro_batches(chosen, tmp_path) == chosen
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert with_stored_micro_batches(config, tmp_path) == first
    with pytest.raises(UserError, match="has 2 micro-batches, which 4 processes cannot share"):
        distributed.micro_batches_of_rank(first.micro_batches)


def test_more_processes_than_micro_batches(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(UserError, match="has 2 micro-batches, which 3 processes cannot share"):
        distributed.micro_batches_of_rank(2)
