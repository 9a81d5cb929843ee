"""Packaged recipes: each trains a few steps, reduced by --set, through the command line; bad input is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pretrain.recipes import read_recipe, recipe_names, with_settings
from runners.cli import main
from tests.pretrain.command import weights
from upstreams.errors import UserError
from upstreams.formats import checkpoint


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["superbit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def reduced(name: str, teacher: Path) -> list[str]:
    """Return settings that reduce a recipe to seconds: two or four blocks, two steps in each iteration."""
    recipe = read_recipe(name)
    blocks = (
        {"layers": 4, "reduce": 1, "recover": 3} if recipe.config.encoder.kind == "squeezeformer" else {"layers": 2}
    )
    settings = [f"encoder={blocks}", "batch_seconds=4", "micro_batch_seconds=2", "crop_seconds=1", "workers=0"]
    settings += ["cluster_fraction=1.0", "cluster_starts=1", "objective.utterance_layer=1"]
    for number, iteration in enumerate(recipe.iterations):
        settings += [
            f"iterations.{number}.{key}" for key in ("steps=2", "clusters=8", f"layer={min(iteration.layer, 1)}")
        ]
    if recipe.objective.layers:
        settings.append("objective.layers=[1]")
    if recipe.teacher.name:
        settings += ["teacher.steps=2", f"teacher.name={teacher}"]
    return [argument for setting in settings for argument in ("--set", setting)]


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_trains(name: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = work / "run/checkpoints/sparseformer_dn_mini.safetensors"
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path, *reduced(name, teacher)]
    assert run(monkeypatch, "pretrain", name, *where) == 0
    recipe = read_recipe(name)
    final = tmp_path / f"checkpoints/{recipe.name}.safetensors"
    provenance = checkpoint.read(final)[2]
    assert provenance["recipe"]["encoder"]["layers"] in (2, 4) and recipe.source and recipe.expected.audio_hours
    assert all(torch.isfinite(tensor).all() for tensor in weights(final).values())


def test_a_teacher_of_s3prl(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path, *reduced("distil_mini", Path("fbank"))]
    assert run(monkeypatch, "pretrain", "distil_mini", *where, "--set", "teacher.layers=[0]") == 0
    assert len(weights(tmp_path / "checkpoints/sparseformer_dn_mini.safetensors")) > 20


def test_targets_are_of_layers_with_the_full_frame_rate() -> None:
    """A Squeezeformer's inner blocks have half of the frames, so that each of their labels would be repeated."""
    recipes = [r for r in map(read_recipe, recipe_names()) if r.config.encoder.kind == "squeezeformer"]
    assert len(recipes) >= 3
    for recipe in recipes:
        encoder = recipe.config.encoder
        assert all(not encoder.reduce < i.layer <= encoder.recover for i in recipe.iterations), recipe.name


def test_a_stage_alone(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["pretrain", work / "recipe.yaml", "--manifest", work / "audio/train.tsv", "--out", tmp_path]
    assert run(monkeypatch, *where, "--stage", "labels1") == 0
    assert (tmp_path / "labels/mfcc8_25hz_frame1/train.km").is_file() and not (
        tmp_path / "pretrain/iteration1"
    ).exists()
    assert run(monkeypatch, *where, "--stage", "iteration1") == 0
    assert not (tmp_path / "checkpoints/sparseformer_dn_mini.safetensors").exists()
    assert run(monkeypatch, *where) == 0
    ours, whole = (weights(f / "checkpoints/sparseformer_dn_mini.safetensors") for f in (tmp_path, work / "run"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--set", "batch_secs=3"], "did you mean 'batch_seconds'"),
        (["--set", "batch_seconds"], "is not KEY=VALUE"),
        (["--set", "iterations.7.steps=3"], "the recipe has no '7' at that place"),
        (["--set", "iterations.1.layer=99"], "must be 0 (MFCC) or a layer of sparseformer_dn_mini, 1 to 8"),
        (["--set", "objective.head=square"], "must be cosine or linear"),
        (["--set", "objective.layers=[8]"], "inner layers are 1 to 7"),
        (["--set", "iterations=[]"], "neither iterations nor a teacher"),
        (["--stage", "labels9"], "the recipe has no stage 'labels9'"),
        (["--set", "batch_seconds=1000000000"], "GB are free on cpu: set micro_batch_seconds to"),
        (["--set", "teacher={name: no_such, steps: 1}", "--set", "iterations=[]"], "teacher 'no_such' is neither"),
    ],
)
def test_bad_input_is_refused_before_training(
    settings: list[str],
    message: str,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["pretrain", work / "recipe.yaml", "--manifest", work / "audio/train.tsv", "--out", tmp_path / "x"]
    assert run(monkeypatch, *where, *settings) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "x").rglob("step_*"))


def test_a_run_with_other_settings_is_not_resumed(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["pretrain", work / "recipe.yaml", "--manifest", work / "audio/train.tsv", "--out", tmp_path]
    assert run(monkeypatch, *where, "--stage", "iteration1") == 0
    assert run(monkeypatch, *where, "--set", "lr=0.1") == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    assert run(monkeypatch, *where, "--set", "save_every=3") == 0  # it does not influence the weights


def test_a_setting_must_be_key_and_value() -> None:
    with pytest.raises(UserError, match="is not KEY=VALUE"):
        with_settings({}, ["x.y"])
