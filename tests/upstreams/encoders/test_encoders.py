"""Every kind of encoder: padding, layerdrop and checkpointing."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.upstreams.encoders.small import KINDS, randomise, small
from upstreams.encoders import build_encoder


@pytest.mark.parametrize("positions", ["conv", "relative", "rotary", "none"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_does_not_leak(kind: str, positions: str) -> None:
    encoder = build_encoder(small(kind, positions=positions)).double()
    randomise(encoder)
    encoder.eval()
    lengths = torch.tensor([1, 2, 7, 12, 13])
    x = torch.randn(5, 13, 16, dtype=torch.float64)
    batch = encoder(x, lengths)
    assert len(batch) == 5
    for row, length in enumerate(lengths.tolist()):
        for ours, alone in zip(batch, encoder(x[row : row + 1, :length], lengths[row : row + 1]), strict=True):
            torch.testing.assert_close(ours[row, :length], alone[0], atol=1e-9, rtol=1e-9)
            assert not ours[row, length:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_layerdrop_and_checkpointing(kind: str) -> None:
    """Gradients with checkpointing equal those without; layerdrop skips about its share of the blocks."""
    encoder = build_encoder(small(kind))
    x, lengths = torch.randn(2, 9, 16), torch.tensor([9, 4])
    gradients = []
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        encoder.zero_grad()
        encoder(x, lengths)[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    encoder.layerdrop = 0.5
    torch.manual_seed(0)
    skipped = 0
    for _ in range(50):
        states = encoder(x, lengths)
        skipped += sum(torch.equal(a, b) for a, b in itertools.pairwise(states))
    if kind != "squeezeformer":  # its U-Net changes the state between blocks
        assert 60 < skipped < 140  # of 200
