"""A matrix makes the checkpoints of its rows: once, in the right order, resumable, and only what is missing."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from runners.matrix import run as matrix
from runners.matrix.run import Options
from tests.runners.matrix.fake_commands import FakeCommands
from tests.runners.matrix.fakes import FakeDownstream, write_matrix
from upstreams.errors import UserError
from upstreams.files import sha256

MODEL = "sparseformer_dn_mini"
ROWS = ["fbank", f"{MODEL}_untrained", MODEL, f"{MODEL}_w1a8", f"{MODEL}_w1a1"]
ITERATIONS = [
    {"layer": 0, "window": 0.28, "clusters": 500, "steps": 450},
    {"layer": 4, "clusters": 200, "steps": 350},
]
TRAINING = {"pretrain": {"iterations": ITERATIONS}, "schedules": {"w1a8": ["w1a32"], "w1a1": ["w1a32"]}}


@pytest.fixture
def with_manifest(corpora: Path) -> Path:
    files = sorted((corpora / "speech_commands_v0.01").rglob("*_nohash_0.wav"))
    manifest = corpora / "manifest" / "train.tsv"
    manifest.parent.mkdir(exist_ok=True)
    lines = [str(corpora), *(f"{file.relative_to(corpora)}\t16000" for file in files)]
    manifest.write_text("\n".join(lines) + "\n")
    return corpora


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake: FakeDownstream) -> FakeCommands:
    made = FakeCommands(tmp_path)
    nothing = {"parameters": None, "macs": None, "storage_bytes": None}
    monkeypatch.setattr("runners.matrix.command.run_superbit", made.run)  # the workers are forks
    monkeypatch.setattr("runners.matrix.results.costs", lambda cell: nothing)
    return made


def write(path: Path, **changes: Any) -> Path:
    return write_matrix(path, **({"upstreams": ROWS, "seeds": [1], "training": TRAINING} | changes))


def table(runs: Path) -> dict[str, str]:
    """Return the digest of the checkpoint that each number is of, by cell."""
    files = runs.glob("cells/*/*/seed*/results.json")
    return {
        str(file.relative_to(runs)): re.findall(r'"checkpoint_sha256": (\S+),', file.read_text())[0] for file in files
    }


def kinds(commands: FakeCommands) -> Counter[str]:
    return Counter(arguments[0] for arguments in commands.made())


def test_every_checkpoint_is_made_once_and_what_changed_is_made_again(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, fake: FakeDownstream
) -> None:
    file, runs = write(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    first = table(runs)
    assert len(first) == len(ROWS) and len(set(first.values())) == len(ROWS)
    assert kinds(commands) == {"labels": 1, "pretrain": 2, "quantize": 3, "pack": 2, "profile": 3}
    kept = runs / "seed1/checkpoints"
    assert {path.stem for path in kept.iterdir()} == {*ROWS[1:], f"{MODEL}_w1a32"}
    assert {path.stem for path in (runs / "seed1/packed").iterdir()} == {f"{MODEL}_w1a8", f"{MODEL}_w1a1"}
    for path in (runs / "seed1/packed").iterdir():
        assert first[f"cells/{path.stem}/ks/seed1/results.json"] == f'"{sha256(path)}"', (
            "rows with bits are evaluated packed"
        )
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert len(commands.made()) == 11, "nothing is computed twice"

    # Other steps of the distillation: labels and pre-training stay.
    assert matrix.evaluate(file, with_manifest, runs, jobs=2, settings=["training.quantize.steps=7"]) == 0
    assert kinds(commands) == {"labels": 1, "pretrain": 2, "quantize": 6, "pack": 4, "profile": 5}
    changed = table(runs)
    assert {cell for cell in first if first[cell] != changed[cell]} == {c for c in first if "_w1" in c}

    # The first ones were kept: nothing is computed, and the numbers are back.
    trained = len(fake.calls_made())
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert len(commands.made()) == 11 + 7 and len(fake.calls_made()) == trained
    assert table(runs) == first


def test_what_needs_a_failed_stage_is_not_started_and_the_rest_is_computed(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = write(tmp_path / "m.yaml"), tmp_path / "runs"
    commands.fails = "--bits w1a1"
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 4  # it, packing, measuring and the cell
    printed = " ".join(capsys.readouterr().out.split())
    assert f"quantize {MODEL}_w1a1 seed 1 failed: superbit failed" in printed
    assert f"{MODEL}_w1a1/ks seed 1 not started: it needs quantize {MODEL}_w1a1 seed 1" in printed
    assert len(table(runs)) == len(ROWS) - 1
    commands.fails, before = "", len(commands.made())
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert [arguments[0] for arguments in commands.made()[before:]] == ["quantize", "pack", "profile"]
    assert len(table(runs)) == len(ROWS)


@pytest.mark.parametrize("victim", ["labels mfcc", "--bits w1a32"])
def test_a_stage_that_was_killed_is_computed_by_the_next_run(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, victim: str
) -> None:
    file, runs = write(tmp_path / "m.yaml", upstreams=["fbank", f"{MODEL}_w1a8"]), tmp_path / "runs"
    commands.kills_itself = victim
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) > 0
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert len(table(runs)) == 2
    twice = [arguments for arguments, count in Counter(map(tuple, commands.made())).items() if count > 1]
    assert len(twice) == 1 and victim in " ".join(twice[0])


def test_a_killed_driver_continues_to_the_same_table(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands
) -> None:
    file, runs = write(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, with_manifest, tmp_path / "alone", jobs=2) == 0
    commands.seconds = 0.2
    fork = multiprocessing.get_context("fork")
    for seconds in (0.3, 0.9, 1.5):
        driver = fork.Process(target=matrix.evaluate, args=(file, with_manifest, runs), kwargs={"jobs": 2})
        driver.start()
        time.sleep(seconds)
        driver.kill()
        driver.join()
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert table(runs) == table(tmp_path / "alone")


def test_two_drivers_in_one_folder_compute_no_stage_twice(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, fake: FakeDownstream
) -> None:
    file, runs = write(tmp_path / "m.yaml", upstreams=[MODEL, f"{MODEL}_w1a1"]), tmp_path / "runs"
    commands.seconds = 0.2
    fork = multiprocessing.get_context("fork")
    drivers = [
        fork.Process(target=matrix.evaluate, args=(file, with_manifest, runs), kwargs={"jobs": 2}) for _ in range(2)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert kinds(commands) == {"labels": 1, "pretrain": 2, "quantize": 2, "pack": 1, "profile": 2}
    assert Counter(call["-m"] for call in fake.calls_made()) == {"train": 2, "evaluate": 2}
    assert len(table(runs)) == 2


def test_a_dry_run_shows_every_stage_with_its_command_and_gpu_hours(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = write(tmp_path / "m.yaml", device="cuda"), tmp_path / "runs"
    changes = ["training.processes=4", "training.pretrain.iterations.0.steps=100000"]
    options = Options(dry_run=True)
    assert matrix.evaluate(file, with_manifest, runs, settings=changes, options=options) == 0
    printed = capsys.readouterr().out
    row = re.search(rf"^pretrain {MODEL} seed 1 iteration1 +waits +100000 +\S+ \S+ +([\d.]+) ", printed, re.MULTILINE)
    assert row is not None
    # 100000 steps of 60 s at 0.055 GMACs a second, forward and backward, at 15e12 MACs a second.
    assert float(row[1]) == pytest.approx(1e5 * 60 * 0.055e9 * 3 / 15e12 / 3600, rel=0.1)
    train = f"torchrun --nproc-per-node 4 -m superbit pretrain {MODEL} --manifest {with_manifest}/manifest/train.tsv"
    assert f"pretrain {MODEL} seed 1 iteration1: {train} --out {runs}/seed1" in printed
    assert "--set iterations.0.steps=100000 --stage iteration1" in printed
    assert f"{MODEL}_w1a1/ks seed 1: superbit downstream -m train -u {MODEL}_w1a1" in printed
    assert "11 commands that make checkpoints, 5 of 5 trainings to run, 5 cells: about" in printed
    assert not runs.exists() and not commands.made()


def test_rows_with_their_own_recipe_and_schedule_have_their_own_folders(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands
) -> None:
    rows: list[Any] = [f"{MODEL}_w1a1", {"label": "one_step", "name": f"{MODEL}_w1a1", "schedule": []}]
    file, runs = write(tmp_path / "m.yaml", upstreams=rows), tmp_path / "runs"
    assert matrix.evaluate(file, with_manifest, runs, jobs=2) == 0
    assert kinds(commands)["pretrain"] == 2 and kinds(commands)["quantize"] == 3
    assert (runs / f"seed1/rows/one_step/checkpoints/{MODEL}_w1a1.safetensors").is_file()
    assert len(set(table(runs).values())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"proceses": 2}}, "unknown key 'proceses' in .*did you mean 'processes'"),
        ({"training": {"processes": 0}}, "processes must be 1 or more"),
        ({"training": {"schedules": {"w1a1": "w1a32"}}}, "must be a list of bit widths"),
        ({"training": {"schedules": {"w1a1": ["w32a32"]}}}, "every schedule starts from"),
        ({"training": {"pretrain": {"iterations.0.stps": 3}}}, "unknown key 'stps'"),
        ({"training": {"quantize": {"stps": 3}}}, "unknown key 'stps'"),
        ({"training": {"match": "train"}}, "training.audio, which is not set"),
        ({"training": {}, "upstreams": [{"name": MODEL, "recipe": "conformer_mini"}]}, "recipe conformer_mini is for"),
        ({"upstreams": [{"name": MODEL, "recipe": "conformer_mini"}]}, "needs the matrix's key `training`"),
        ({"base": "superb_min"}, "no packaged matrix; did you mean 'superb_mini'"),
    ],
)
def test_mistakes_are_named(
    with_manifest: Path, tmp_path: Path, commands: FakeCommands, changes: dict[str, Any], message: str
) -> None:
    file = write_matrix(tmp_path / "m.yaml", **({"upstreams": [MODEL]} | changes))
    with pytest.raises(UserError, match=message):
        matrix.evaluate(file, with_manifest, tmp_path / "runs")
