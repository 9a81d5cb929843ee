"""Packaged recipes: each trains a few steps, reduced by --set, through the command line; bad input is refused."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.objectives.hubert import HubertPretraining, MaskedBatch
from pretrain.recipes import read_recipe, recipe_names, with_settings
from pretrain.training import loop, memory
from pretrain.training.state import States
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
        (["--set", "views=3"], "views is 3"),
        (["--set", "views=0"], "views is 0"),
        (["--set", "views=1"], "the utterance loss needs 2"),
        (["--set", "lr=-1"], "lr is -1"),
        (["--set", "workers=-1"], "workers is -1"),
        (["--set", "warm_up=5"], "warm_up is 5"),
        (["--set", "cluster_fraction=0"], "cluster_fraction is 0"),
        (["--set", "objective.utterance_weight=-1"], "objective.utterance_weight is -1"),
        (["--set", "objective.layers=3"], "must be a list of int"),
        (["--set", "iterations.0.window=3"], "window is 3"),
        (["--set", "iterations.1.window=0.4"], "only MFCC have a window"),
        (["--set", "iterations.0.window=0.4", "--set", "label_rate=50"], "set one of them to 0"),
        (["--set", "encoder=3"], "must be a mapping"),
        (["--set", "micro_batch_seconds=1.5"], "must hold 2 crops"),
        (["--set", "micro_batch_seconds=7"], "between 0 and batch_seconds"),
        (["--seed", "-1"], "greater than or equal to 0"),
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


def test_a_recipe_inherits_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a.yaml").write_text("base: ../b.yaml\nmodel: transformer_mini\nobjective: {mask_length: 3}\n")
    (tmp_path / "b.yaml").write_text("iterations: [{layer: 0, clusters: 4, steps: 1}]\nobjective: {code_dim: 8}\n")
    recipe = read_recipe(str(tmp_path / "inner/a.yaml"), ["objective.code_dim=9"])
    assert (recipe.objective.mask_length, recipe.objective.code_dim, len(recipe.iterations)) == (3, 9, 1)
    (tmp_path / "b.yaml").write_text("base: inner/a.yaml\n")
    with pytest.raises(UserError, match=r"is its own base: a\.yaml -> b\.yaml -> a\.yaml"):
        read_recipe(str(tmp_path / "inner/a.yaml"))
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    with pytest.raises(UserError, match=r"there is no file .*c\.yaml"):
        read_recipe(str(tmp_path / "inner/a.yaml"))
    assert read_recipe("hubert_base").objective.mask_length == 10  # the packaged ones share a base
    assert read_recipe("conformer_s").batch_seconds == 2800


def test_a_run_resumes_with_smaller_micro_batches_and_checkpointing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After running out of memory: by --set, from the last saved state, without a new --out."""
    (tmp_path / "recipe.yaml").write_text(
        "model: conformer_mini\nencoder: {layers: 2, dropout: 0.1}\nbatch_seconds: 6\ncrop_seconds: 1.0\n"
        "iterations: [{layer: 0, clusters: 8, steps: 4}]\nsave_every: 2\nobjective: {utterance_layer: 1}\n"
    )
    where = ["--manifest", work / "audio/train.tsv", "--labels", work / "run/labels", "--out", tmp_path / "run"]
    command = ["pretrain", tmp_path / "recipe.yaml", *where, "--stage", "iteration1"]
    loss, failing = HubertPretraining.forward, [True]

    def without_memory(module: HubertPretraining, batch: MaskedBatch, *args: Any, **more: Any) -> Any:
        if failing[0] and batch.waveforms.shape[0] > 2 and torch.is_grad_enabled() and steps[0] >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        steps[0] += 1
        return loss(module, batch, *args, **more)

    steps = [0]
    monkeypatch.setattr(HubertPretraining, "forward", without_memory)
    assert run(monkeypatch, *command) == 2
    folder = tmp_path / "run/pretrain/conformer_mini"
    assert [saved.step for saved in States(folder / "iteration1").saved()] == [2]
    assert run(monkeypatch, *command, "--set", "micro_batch_seconds=2", "--set", "checkpointing=true") == 0
    assert States(folder / "iteration1").saved()[-1].step == 4
    assert json.loads((folder / "config.json").read_text())["micro_batches"] == 3


def test_checkpointing_computes_the_same_weights(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and batch normalisation: the repeated forward pass must draw the same and count once."""
    monkeypatch.setattr(loop, "FastTraining", nullcontext)  # checkpointing runs without it, and Muon amplifies rounding
    found = []
    for name in ("false", "true"):
        (tmp_path / "recipe.yaml").write_text(
            "model: conformer_mini\nencoder: {layers: 2, dropout: 0.1}\nbatch_seconds: 6\ncrop_seconds: 1.0\n"
            "iterations: [{layer: 0, clusters: 8, steps: 3}]\nobjective: {utterance_layer: 1}\n"
        )
        where = ["--manifest", work / "audio/train.tsv", "--labels", work / "run/labels", "--out", tmp_path / name]
        assert run(monkeypatch, "pretrain", tmp_path / "recipe.yaml", *where, "--set", f"checkpointing={name}") == 0
        found.append(weights(tmp_path / name / "checkpoints/conformer_mini.safetensors"))
    for key, tensor in found[0].items():
        if "output_" not in key:
            torch.testing.assert_close(tensor, found[1][key], rtol=1e-4, atol=1e-5, msg=key)
    recipe = read_recipe(str(tmp_path / "recipe.yaml"))
    plain, less = (memory.required_bytes(recipe.config, 1.0, checkpointing)[1] for checkpointing in (False, True))
    assert less < plain


@pytest.mark.parametrize("key", ["iterations: [{layer: %s, clusters: 4, steps: 1}]", "keep: %s", "seed_of_nothing: %s"])
def test_a_number_of_thousands_of_digits_is_refused_in_a_short_sentence(key: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: sparseformer_dn_mini\n{key % hex(10**5000)}\n")
    with pytest.raises(UserError) as caught:
        read_recipe(str(path))
    assert len(str(caught.value)) < 500
