"""torch.compile in training: how many graphs, and that the faster implementations for a CPU stay outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch._dynamo.utils import counters

from pretrain.pretraining import pretrain
from pretrain.recipes import read_recipe
from tests.pretrain.tiny_audio import write_corpus

RECIPE = """
model: transformer_mini
iterations: [{layer: 0, clusters: 8, steps: 3}]
batch_seconds: 6
crop_seconds: 1.0
cluster_fraction: 1.0
compile: true
"""


def test_a_compiled_block_is_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile

    def compile_without_code(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="eager", **options)  # seconds less than generated C++; the graphs are the same

    monkeypatch.setattr(nn.Module, "compile", compile_without_code)
    write_corpus(tmp_path / "audio", utterances=10)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    counters.clear()
    pretrain(
        read_recipe(str(tmp_path / "recipe.yaml")),
        manifest_path=tmp_path / "audio/train.tsv",
        out=tmp_path / "run",
        labels=tmp_path / "labels",
        seed=0,
    )
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 4  # at most one for each block
