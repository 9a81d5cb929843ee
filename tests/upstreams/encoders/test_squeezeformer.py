"""The Squeezeformer against a slow implementation of its paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.encoders.small import randomise, small
from upstreams.encoders import build_encoder
from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import DepthwiseConvolution
from upstreams.encoders.squeezeformer import ScaleAndBias


def slow_squeezeformer(encoder: nn.Module, x: Tensor, heads: int, reduce: int, recover: int) -> list[Tensor]:
    """Return the hidden states of x (frames, dim) by the paper's blocks and U-Net, without positions, in loops."""

    def layer_norm(norm: nn.LayerNorm, row: Tensor) -> Tensor:
        centred = row - row.mean()
        return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias

    def linear(module: nn.Linear, row: Tensor) -> Tensor:
        return module.weight @ row + module.bias

    def swish(row: Tensor) -> Tensor:
        return row / (1 + (-row).exp())

    def depthwise(module: DepthwiseConvolution, rows: list[Tensor], stride: int) -> list[Tensor]:
        weight, bias = module.convolution.weight[:, 0, :, 0], module.convolution.bias
        half = weight.shape[1] // 2
        out = []
        for centre in range(0, len(rows), stride):
            total = bias.clone()
            for tap in range(weight.shape[1]):
                if 0 <= centre + tap - half < len(rows):
                    total = total + weight[:, tap] * rows[centre + tap - half]
            out.append(total)
        return out

    def scaled(module: ScaleAndBias, rows: list[Tensor]) -> list[Tensor]:
        return [row * module.scale + module.bias for row in rows]

    def attend(module: Attention, rows: list[Tensor]) -> list[Tensor]:
        q, k, v = ([linear(part, r).view(heads, -1) for r in rows] for part in (module.query, module.key, module.value))
        out = []
        for i in range(len(rows)):
            context = []
            for h in range(heads):
                scores = torch.stack([q[i][h] @ k[j][h] for j in range(len(rows))]) / math.sqrt(q[i].shape[1])
                weights = scores.exp() / scores.exp().sum()
                context.append(sum(weights[j] * v[j][h] for j in range(len(rows))))
            out.append(linear(module.output, torch.cat(context)))
        return out

    def convolve(module: nn.Module, rows: list[Tensor]) -> list[Tensor]:
        rows = depthwise(module.depthwise, [swish(linear(module.expand, row)) for row in rows], 1)
        norm = module.norm
        rows = [(r - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias for r in rows]
        return [linear(module.contract, swish(row)) for row in rows]

    def feed(module: nn.Module, rows: list[Tensor]) -> list[Tensor]:
        return [linear(module.contract, swish(linear(module.expand, row))) for row in rows]

    rows = list(x)
    states, skip = [torch.stack(rows)], rows
    for number, block in enumerate(encoder.blocks):
        if number == reduce:
            skip = rows
            rows = [linear(encoder.reduce_pointwise, r) for r in depthwise(encoder.reduce_depthwise, rows, 2)]
        if number == recover:
            rows = [skip[i] + linear(encoder.recover, rows[i // 2]) for i in range(len(skip))]
        steps = ((attend, block.attention), (feed, block.first), (convolve, block.convolution), (feed, block.second))
        for step, (function, module) in enumerate(steps):
            new = function(module, scaled(block.scales[step], rows))
            rows = [layer_norm(block.norms[step], row + change) for row, change in zip(rows, new, strict=True)]
        states.append(torch.stack([rows[i // 2] if reduce <= number < recover else rows[i] for i in range(len(x))]))
    return states


@pytest.mark.parametrize("frames", [1, 2, 9, 12])
@torch.no_grad()
def test_squeezeformer_against_a_slow_implementation(frames: int) -> None:
    encoder = build_encoder(small("squeezeformer", positions="none", activation="swish")).double()
    randomise(encoder)
    encoder.eval()
    x = torch.randn(frames, 16, dtype=torch.float64)
    ours = encoder(x[None], torch.tensor([frames]))
    for state, wanted in zip(ours, slow_squeezeformer(encoder, x, 2, 1, 3), strict=True):
        torch.testing.assert_close(state[0], wanted, atol=1e-6, rtol=0)
