"""A float model -> its quantized form. Only the blocks' linear layers and attention products are quantized.

Full precision stay: front-end, positions, depthwise convolutions, norms, biases and residuals, as in BiT
(arXiv 2205.13016), which has no convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.quantization.modules import QuantLinear, QuantProduct
from upstreams.quantization.quantizers import ActivationQuantizer
from upstreams.quantization.spec import Bits

if TYPE_CHECKING:
    from upstreams.model import AudioEncoder


def quantize(model: AudioEncoder, bits: str) -> None:
    """Quantize the blocks of `model` in place to `bits`; parameters keep their names and values.

    The feed-forward's activation becomes ReLU, so that the second linear's 1-bit input can be {0, alpha}.
    With 1-bit activations the new scales are unset until `calibrating` has seen data.
    """
    spec = Bits.parse(bits)
    if spec == Bits(32, 32):
        return
    for module in list(model.encoder.modules()):
        if isinstance(module, FeedForward):
            module.activation = nn.ReLU()
            module.expand = _quantized(module.expand, spec)
            module.contract = _quantized(module.contract, spec, non_negative=True)
        elif isinstance(module, ConvolutionModule):
            module.expand = _quantized(module.expand, spec)
            module.contract = _quantized(module.contract, spec)
        elif isinstance(module, Attention):
            for name in ("query", "key", "value", "output"):
                setattr(module, name, _quantized(getattr(module, name), spec))
            if spec.activation == 1:
                dim = module.output.in_features
                module.product = QuantProduct(dim // module.heads, module.heads)


def _quantized(linear: nn.Linear, bits: Bits, non_negative: bool = False) -> QuantLinear:
    new = QuantLinear(linear.in_features, linear.out_features, bits, non_negative)
    new.weight = linear.weight
    new.bias = linear.bias
    return new


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside it, every forward pass sets the scales that are not yet calibrated, each from what it is given.

    The pass must hold no padding. Later quantizers see what earlier ones have already quantized.
    """
    handles = [
        module.register_forward_pre_hook(_set_scale)
        for module in model.modules()
        if isinstance(module, ActivationQuantizer) and not bool(module.calibrated)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set_scale(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    assert isinstance(module, ActivationQuantizer)
    if not bool(module.calibrated):
        module.calibrate(inputs[0])
