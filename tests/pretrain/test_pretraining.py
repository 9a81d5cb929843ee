"""Pre-training through the command line: what it writes, finished runs, recipes, help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.recipes import read_recipe, recipe_names
from tests.pretrain.command import superbit, weights
from tests.pretrain.tiny_audio import write_recipe
from upstreams.errors import UserError
from upstreams.formats import checkpoint


def test_pretraining_writes_both_checkpoints_and_logs(work: Path) -> None:
    trained = work / "run/checkpoints/sparseformer_dn_mini.safetensors"
    untrained = work / "run/checkpoints/sparseformer_dn_mini_untrained.safetensors"
    before, after = weights(untrained), weights(trained)
    key = "model.encoder.blocks.0.attention.query.weight"
    assert not torch.equal(before[key], after[key])
    assert after["head.codewords"].shape[0] == 10 and "head.codewords" not in before
    _, _, provenance = checkpoint.read(trained)
    assert provenance["seed"] == 0 and provenance["recipe"]["iterations"][0]["steps"] == 6
    assert list((work / "run/pretrain/sparseformer_dn_mini/iteration2").glob("events.out.tfevents.*"))


def test_a_finished_run_is_skipped(work: Path) -> None:
    path = work / "run/checkpoints/sparseformer_dn_mini.safetensors"
    before = path.stat().st_mtime_ns
    done = superbit("pretrain", work / "recipe.yaml", "--manifest", work / "audio/train.tsv", "--out", work / "run")
    assert done.returncode == 0 and path.stat().st_mtime_ns == before


def test_unknown_recipe_keys_suggest_the_closest_ones(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml")
    path.write_text(path.read_text() + "crop_second: 3\n")
    with pytest.raises(UserError, match="did you mean 'crop_seconds'"):
        read_recipe(str(path))
    with pytest.raises(UserError, match="did you mean 'transformer_mini'"):
        read_recipe("transformer_min")


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_valid(name: str) -> None:
    assert read_recipe(name).config.encoder.layers > 0


def test_commands_help_without_heavy_imports() -> None:
    code = "import sys, runners.cli; sys.exit(bool({'torch', 's3prl', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
    for command in (
        *("pretrain", "quantize", "analyse", "evaluate", "report", "labels mfcc", "corpus mini"),
        *("import", "profile", "pack", "export"),
    ):
        done = superbit(*command.split(), "--help")
        assert done.returncode == 0 and "--" in done.stdout
