"""Relative and rotary positions against their papers."""

from __future__ import annotations

import math

import pytest
import torch

from tests.upstreams.encoders.small import randomise
from upstreams.encoders.attention import Attention
from upstreams.encoders.positions import RelativePositions, Rotary
from upstreams.encoders.sparseformer import LocalAttention


@pytest.mark.parametrize("radius", [None, 1, 3, 20])
@torch.no_grad()
def test_relative_positions_against_loops(radius: int | None) -> None:
    """Transformer-XL's four terms, one pair of frames at a time, in float64."""
    dim, heads, frames = 8, 2, 11
    relative = RelativePositions(dim, heads)
    attention = Attention(dim, heads, relative) if radius is None else LocalAttention(dim, heads, radius, relative)
    randomise(attention.double())
    x = torch.randn(1, frames, dim, dtype=torch.float64)
    q, k, v = (linear(x)[0].view(frames, heads, -1) for linear in (attention.query, attention.key, attention.value))
    u, w = relative.content_bias.view(heads, -1), relative.position_bias.view(heads, -1)
    out = torch.zeros(frames, heads, dim // heads, dtype=torch.float64)
    for h in range(heads):
        for i in range(frames):
            seen = [j for j in range(frames) if radius is None or abs(i - j) <= radius]
            scores = []
            for j in seen:
                sinusoid = []
                for pair in range(dim // 2):
                    angle = (i - j) * 10_000.0 ** (-2 * pair / dim)
                    sinusoid += [math.sin(angle), math.cos(angle)]
                position = relative.projection(torch.tensor(sinusoid, dtype=torch.float64)).view(heads, -1)[h]
                scores.append(((q[i, h] + u[h]) @ k[j, h] + (q[i, h] + w[h]) @ position) / math.sqrt(dim // heads))
            weights = torch.stack(scores).softmax(0)
            out[i, h] = sum(weight * v[j, h] for weight, j in zip(weights, seen, strict=True))
    wanted = attention.output(out.flatten(1))
    # The angles are computed in float32.
    torch.testing.assert_close(attention(x, torch.tensor([frames]))[0], wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rotary_scores_depend_on_the_offset_only() -> None:
    rotary = Rotary()
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    turned_q, turned_k = rotary(query.expand(1, 9, 1, 8)), rotary(key.expand(1, 9, 1, 8))
    scores = turned_q[0, :, 0] @ turned_k[0, :, 0].T
    for offset in range(-8, 9):
        diagonal = torch.diagonal(scores, offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned_q.norm(dim=-1), query.norm().expand(1, 9, 1), atol=1e-6, rtol=0)
