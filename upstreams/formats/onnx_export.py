"""Export of a checkpoint, front-end included, to an ONNX graph that takes batches of any size and length.

Quantized models are exported as torch computes them, fake-quantized in floating point. Linear layers with 8-bit weights
and inputs are exported with pairs of QuantizeLinear and DequantizeLinear, which runtimes turn into integer products.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.quantization.modules import QuantLinear
from upstreams.quantization.quantizers import WeightQuantizer
from upstreams.quantization.spec import Bits
from upstreams.versions import install_command

EXAMPLE = (32_000, 20_000)  # samples of the two utterances with which the graph is traced


class Stacked(nn.Module):
    """A model with all hidden states stacked into one tensor, the output of the graph."""

    def __init__(self, model: AudioEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Map waveforms (batch, samples), lengths (batch,) to (layers + 1, batch, frames, dim), zero where padded."""
        return torch.stack(self.model(waveforms, lengths))


class QDQLinear(nn.Module):
    """A linear layer of 8-bit weights and input in quantization operations that ONNX has."""

    weight: Tensor

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        quantizer = linear.weight_quantizer
        assert isinstance(quantizer, WeightQuantizer) and linear.input is not None
        scale = quantizer.scale.detach()
        whole = quantizer.whole_numbers(linear.weight.detach()).to(torch.int8)
        self.bias = linear.bias
        self.input = float(linear.input.scale.detach()), linear.input.signed
        self.register_buffer("weight", whole)
        self.register_buffer("scales", scale.flatten().expand(len(whole)).contiguous())
        self.register_buffer("zeros", torch.zeros(len(whole), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        alpha, signed = self.input
        kind = (0, -128, 127, torch.int8) if signed else (0, 0, 255, torch.uint8)
        operations: Any = torch.ops.quantized_decomposed
        x = operations.quantize_per_tensor(x, alpha, *kind)
        x = operations.dequantize_per_tensor(x, alpha, *kind)
        weight = operations.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return nn.functional.linear(x, weight, self.bias)


def has_quantization_operators() -> bool:
    """True if torch has the private operators of QDQLinear; without them, 8-bit layers export as float operations."""
    try:
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError:
        return False
    return hasattr(torch.ops.quantized_decomposed, "dequantize_per_channel")


def export(model: AudioEncoder, path: Path) -> None:
    """Write the ONNX graph of `model` in eval mode. The model itself and the settings of logging stay as they are.

    Inputs: waveforms (batch, samples) float32, lengths (batch,) int64. Output: hidden_states (layers + 1, batch,
    frames, dim). Raises UserError if the packages of superbit's extra `onnx` are not installed.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"export needs the package {package}: {install_command('onnx')}")
    model = copy.deepcopy(model)
    replaces = has_quantization_operators()
    for name, module in list(model.named_modules()):
        if replaces and isinstance(module, QuantLinear) and module.bits == Bits(8, 8):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QDQLinear(module))
    example = torch.zeros(2, EXAMPLE[0]), torch.tensor(EXAMPLE)
    any_size = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), _quiet("torch.onnx"), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Stacked(model.eval()),
            example,
            dynamo=True,
            dynamic_shapes={"waveforms": {0: any_size, 1: any_size}, "lengths": {0: any_size}},
            input_names=["waveforms", "lengths"],
            output_names=["hidden_states"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["superbit"] = json.dumps(dataclasses.asdict(model.config))
    with atomic_write(path) as temporary:
        program.save(temporary, external_data=False)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Inside this context, a logger passes errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def export_checkpoint(path: Path, out: Path) -> None:
    """Write the ONNX graph of a checkpoint to `out`. Raises UserError if the checkpoint cannot be read."""
    checkpoint.protect(out)
    export(checkpoint.load(path), out)
