"""A tiny pre-trained checkpoint that several test files start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pretrain.command import superbit
from tests.pretrain.tiny_audio import write_corpus, write_recipe


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with audio/train.tsv, recipe.yaml and run/. Tests must not change its checkpoints."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_corpus(folder / "audio", utterances=10)
    write_recipe(folder / "recipe.yaml")
    done = superbit(
        "pretrain", folder / "recipe.yaml", "--manifest", folder / "audio/train.tsv", "--out", folder / "run"
    )
    assert done.returncode == 0, done.stderr
    return folder
