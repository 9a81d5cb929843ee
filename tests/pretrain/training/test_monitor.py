"""Logged values of a quantized model in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.training.monitor import SignFlips
from upstreams.config import preset
from upstreams.formats.checkpoint import build
from upstreams.quantization.modules import QuantLinear


def test_sign_flips_are_counted() -> None:
    model = build(replace(preset("sparseformer_sw_mini"), bits="w1a32"))
    flips = SignFlips(model)
    assert flips() == {}
    assert all(float(value) == 0 for value in flips().values())
    layer = model.encoder.blocks[0].attention.query
    assert isinstance(layer, QuantLinear)
    with torch.no_grad():
        layer.weight[:64] = layer.weight[:64].neg()  # a quarter of the weights; the threshold hardly moves
    found = flips()
    weights_of_kind = 2 * 4 * 256 * 256
    assert float(found["sign_flips/attention"]) == pytest.approx(64 * 256 / weights_of_kind, rel=0.02)
    assert float(found["sign_flips/feed_forward"]) == 0
