"""Exported graphs in ONNX Runtime against torch, on other numbers and lengths of waveforms than the traced ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from runners.cli import app
from tests.upstreams.packed.models import noise, quantized
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.formats.onnx_export import export_checkpoint
from upstreams.packed import convert

onnx = pytest.importorskip("onnx", reason="superbit's extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="superbit's extra onnx is not installed")
pytest.importorskip("onnxscript", reason="superbit's extra onnx is not installed")


@pytest.mark.parametrize(
    ("kind", "bits", "operators"),
    [
        ("sparseformer", "w32a32", True),
        ("transformer", "w8a8", True),
        ("transformer", "w8a8", False),
        ("sparseformer", "w1a1", True),
    ],
)
@torch.no_grad()
def test_a_graph_computes_what_torch_does(
    kind: str, bits: str, operators: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """operators: False stands for a torch without its private operators of quantization."""
    if not operators:
        monkeypatch.setattr("upstreams.formats.onnx_export.has_quantization_operators", lambda: False)
    encoder = EncoderConfig(kind=kind, layers=1, dim=36, heads=3, feed_forward_dim=40, position_groups=36, radius=5)
    config = ModelConfig("small", FrontEndConfig(stem="convolution", width=4), encoder)
    model = checkpoint.build(config).eval() if bits == "w32a32" else quantized(config, bits)
    path, graph = tmp_path / "small.safetensors", tmp_path / "small.onnx"
    checkpoint.save(path, model, None, {})
    result = CliRunner().invoke(app, ["export", str(path), "--onnx", str(graph)])
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(str(graph))
    for lengths in ([32_000, 20_000], [50_001, 100, 30_000], [1]):
        waveforms = noise(len(lengths), max(lengths))
        expected = torch.stack(model(waveforms, torch.tensor(lengths)))
        fed = {"waveforms": waveforms.numpy(), "lengths": torch.tensor(lengths).numpy()}
        (states,) = session.run(None, fed)
        torch.testing.assert_close(torch.from_numpy(states), expected, atol=1e-3, rtol=0)
    operations = Counter(node.op_type for node in onnx.load(graph).graph.node)
    # Six weights and four inputs: that of queries, keys and values is quantized once, as calibration made it alike.
    assert operations["DequantizeLinear"] == (10 if bits == "w8a8" and operators else 0)


def test_a_packed_file_is_refused(tmp_path: Path) -> None:
    encoder = EncoderConfig(layers=1, dim=36, heads=3, feed_forward_dim=40, position_groups=36)
    path = tmp_path / "packed.safetensors"
    convert.save(path, convert.pack(quantized(ModelConfig("small", encoder=encoder), "w1a1")), {})
    with pytest.raises(UserError, match="packed from"):
        export_checkpoint(path, tmp_path / "small.onnx")
