"""torch.compile in training: how many graphs, and that the faster implementations for a CPU stay outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.async_compile import AsyncCompile
from torch.profiler import ProfilerActivity, profile

from pretrain.pretraining import pretrain
from pretrain.recipes import read_recipe
from pretrain.training.optimizers import compile_blocks
from pretrain.training.settings import TrainingSettings
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import preset
from upstreams.encoders import build_encoder

RECIPE = """
model: transformer_mini
iterations: [{layer: 0, clusters: 8, steps: 3}]
batch_seconds: 6
crop_seconds: 1.0
cluster_fraction: 1.0
compile: true
"""


def without_code(backend: str) -> Callable[..., None]:
    """Return a replacement of nn.Module.compile that generates no C++, which takes minutes; the graphs are the same."""
    compile_module = nn.Module.compile
    return lambda module, **options: compile_module(module, backend=backend, **options)


@pytest.mark.parametrize(
    "name",
    ["transformer_mini", "conformer_mini", "squeezeformer_mini", "sparseformer_dn_mini", "sparseformer_sw_mini"],
)
def test_a_block_is_one_graph_for_all_shapes_and_equals_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, with three shapes of batches, in training."""
    monkeypatch.setattr(nn.Module, "compile", without_code("aot_eager"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = replace(preset(name).encoder, dropout=0.0, layerdrop=0.0)
    block = build_encoder(config).train().blocks[0]
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(len(frames), max(frames), config.dim, generator=generator), torch.tensor(frames))
        for frames in ([70, 40], [33, 50, 41], [90, 64, 91, 12])
    ]

    def run() -> list[Any]:
        buffers = {key: buffer.clone() for key, buffer in block.named_buffers()}
        found = []
        for x, lengths in batches:
            valid = torch.arange(x.shape[1]) < lengths[:, None]
            loss = (block(x, lengths) * valid[..., None]).square().sum()
            loss.backward()
            found += [loss.detach(), *(p.grad.clone() for p in block.parameters())]
            block.zero_grad()
        found += [buffer.clone() for buffer in block.buffers()]
        for key, buffer in block.named_buffers():
            buffer.copy_(buffers[key])
        return found

    eager = run()
    compile_blocks([block], TrainingSettings(compile=True))
    counters.clear()
    for ours, theirs in zip(run(), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::convolution_backward")


@pytest.mark.slow
def test_a_compiled_block_of_conformer_s_starts_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: generated kernels, which are not built here, and products and convolutions of libraries.

    3768 operations were counted for a micro-batch of conformer_s, of 16 blocks, before batch normalisation compiled.
    """
    calls: list[Any] = []
    for name in ("cpp", "cpp_pybinding"):
        monkeypatch.setattr(AsyncCompile, name, lambda *_, **__: lambda *arguments: calls.append(arguments))
    torch._dynamo.reset()
    config = preset("conformer_s").encoder
    block = build_encoder(config).train().blocks[0]
    compile_blocks([block], TrainingSettings(compile=True))
    x, lengths = torch.randn(2, 50, config.dim, requires_grad=True), torch.tensor([50, 44])
    block(x, lengths).sum().backward()  # compiles
    calls.clear()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        block(x, lengths).sum().backward()
    products = sum(event.name in PRODUCTS for event in profiler.events())
    assert 10 < len(calls) <= 35 and 30 < products <= 45


def test_a_compiled_model_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", without_code("eager"))
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
