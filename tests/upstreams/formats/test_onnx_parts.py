"""ONNX graphs of every encoder, front-end and kind of override; export leaves the model and the process alone."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path

import pytest
import torch

from tests.upstreams.packed.every_part import COVERING, Part
from tests.upstreams.packed.models import noise, quantized
from upstreams.formats import onnx_export
from upstreams.model import AudioEncoder

onnx = pytest.importorskip("onnx", reason="superbit's extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="superbit's extra onnx is not installed")
pytest.importorskip("onnxscript", reason="superbit's extra onnx is not installed")


def exported(model: AudioEncoder, path: Path, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states of the model's graph and of the model."""
    onnx_export.export(model, path)
    waveforms = noise(len(lengths), max(lengths))
    fed = {"waveforms": waveforms.numpy(), "lengths": torch.tensor(lengths).numpy()}
    (states,) = onnxruntime.InferenceSession(str(path)).run(None, fed)
    return torch.from_numpy(states), torch.stack(model(waveforms, torch.tensor(lengths)))


@torch.no_grad()
def check(part: Part, path: Path, bits: str, overrides: dict[str, str]) -> None:
    """A rounding error may move an input of 8 bits by one step."""
    states, expected = exported(quantized(part.config, bits, overrides), path, [20_000, 9_000])
    assert states.shape == expected.shape
    assert float((states - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_relative_positions_and_a_waveform_front_end_of_8_bits_export(tmp_path: Path) -> None:
    """8 bits, because ONNX has operations of its own for them. Neither the model nor logging changes."""
    config = Part("transformer", "relative", "waveform", "front_end").config
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, layers=1))
    loggers = [logging.getLogger(name) for name in ("", "torch", "torch.onnx", "onnxscript", "onnx_ir")]
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers], list(warnings.filters)
    model = quantized(config, "w1a32", {"front_end": "w8a8", "positions": "w8a8"}).train()
    modules = {name: (id(module), module.training) for name, module in model.named_modules()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        states, _ = exported(model, tmp_path / "graph.onnx", [20_000, 9_000])
        after = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers], list(warnings.filters)
    finally:
        logging.getLogger("torch.onnx").setLevel(logging.NOTSET)
    assert after == before
    assert modules == {name: (id(module), module.training) for name, module in model.named_modules()}
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    waveforms, lengths = noise(2, 20_000), torch.tensor([20_000, 9_000])
    with torch.no_grad():
        expected = torch.stack(model.eval()(waveforms, lengths))
    assert float((states - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("part", COVERING, ids=str)
def test_every_encoder_front_end_and_kind_of_8_bits_exports(part: Part, tmp_path: Path) -> None:
    check(part, tmp_path / "graph.onnx", "w1a32", {part.kind: "w8a8"})
