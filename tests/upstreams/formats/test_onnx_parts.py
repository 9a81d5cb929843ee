"""ONNX graphs of every encoder, front-end and kind of override; exporting leaves the model and the process alone."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

from tests.upstreams.packed.every_part import COVERING, FEW, Part
from tests.upstreams.packed.models import noise, quantized
from upstreams.formats import onnx_export
from upstreams.model import AudioEncoder

onnx = pytest.importorskip("onnx", reason="superbit's extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="superbit's extra onnx is not installed")
pytest.importorskip("onnxscript", reason="superbit's extra onnx is not installed")

CASES = [*FEW, *(pytest.param(part, marks=pytest.mark.slow) for part in COVERING if part not in FEW)]


def exported(model: AudioEncoder, path: Path, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states of the model's graph and of the model."""
    onnx_export.export(model, path)
    waveforms = noise(len(lengths), max(lengths))
    fed = {"waveforms": waveforms.numpy(), "lengths": torch.tensor(lengths).numpy()}
    (states,) = onnxruntime.InferenceSession(str(path)).run(None, fed)
    return torch.from_numpy(states), torch.stack(model(waveforms, torch.tensor(lengths)))


@pytest.mark.parametrize("part", CASES, ids=str)
@torch.no_grad()
def test_a_graph_with_linear_layers_of_8_bits_computes_what_torch_does(part: Part, tmp_path: Path) -> None:
    """8 bits, because ONNX has operations of its own for them. A rounding error may move an input by one step."""
    model = quantized(part.config, "w1a32", {part.kind: "w8a8"})
    states, expected = exported(model, tmp_path / "graph.onnx", [20_000, 9_000])
    assert states.shape == expected.shape
    assert float((states - expected).abs().max()) < 0.05 * float(expected.abs().max())


@torch.no_grad()
def test_exporting_changes_neither_the_model_nor_the_logger(tmp_path: Path) -> None:
    model = quantized(FEW[0].config, "w8a8").train()
    loggers = [logging.getLogger(name) for name in ("", "torch", "torch.onnx", "onnxscript", "onnx_ir")]
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    modules = {name: (id(module), module.training) for name, module in model.named_modules()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers], list(warnings.filters)
    try:
        onnx_export.export(model, tmp_path / "graph.onnx")
        assert before == (
            [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers],
            list(warnings.filters),
        )
    finally:
        logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    assert modules == {name: (id(module), module.training) for name, module in model.named_modules()}
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
