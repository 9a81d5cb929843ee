"""`superbit pretrain RECIPE --dry-run`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.estimate import describe, memory_table, stages
from pretrain.recipes import read_recipe, recipe_names
from tests.pretrain.command import superbit


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_an_estimate(name: str) -> None:
    text = describe(read_recipe(name), 0.1)
    assert "EFLOPs" in text and "memory of a GPU" in text and "nan" not in text


def test_flops_of_hubert_base_are_those_of_its_parameters_and_attention() -> None:
    """A Transformer of 85 M weights: 6 FLOPs a weight and frame; with attention and the waveform convolutions more."""
    recipe = read_recipe("hubert_base")
    *_, second = stages(recipe, 960)
    frames = recipe.iterations[1].steps * recipe.batch_seconds * 50
    assert 1.2 < second.flops / (6 * 85e6 * frames) < 3
    checkpointed = stages(read_recipe("hubert_base", ["checkpointing=true"]), 960)[-1]
    assert checkpointed.flops == pytest.approx(second.flops * 4 / 3)


def test_labels_of_a_layer_are_computed_once_and_for_the_sample() -> None:
    first, labels, second = stages(read_recipe("conformer_s"), 960)
    assert labels.name == "labels2" and labels.hours == pytest.approx(960 * 1.1)
    assert labels.flops / labels.hours == pytest.approx(first.flops / first.hours / 3 * 8 / 16)
    assert second.steps == 400_000 and second.hours == pytest.approx(400_000 * 2800 / 3600)


def test_memory_falls_with_the_micro_batch_and_with_checkpointing() -> None:
    rows = memory_table(read_recipe("conformer_s"))
    assert [seconds for seconds, _, _ in rows] == [350, 175, 87.5, 43.75]
    assert all(checkpointed < plain for _, plain, checkpointed in rows)
    assert sorted(rows, reverse=True) == rows and rows[0][1] > rows[-1][1]


def test_the_command_needs_no_audio(tmp_path: Path) -> None:
    done = superbit("pretrain", "conformer_s", "--dry-run", "--utilisation", "0.5", cwd=tmp_path)
    assert done.returncode == 0 and "GPU hours at 50 %" in done.stdout and not list(tmp_path.iterdir())
    done = superbit("pretrain", "conformer_s", "--out", tmp_path)
    assert done.returncode == 2 and "a training needs --manifest and --out" in " ".join(done.stderr.split())
