"""The Conformer block against torchaudio's."""

from __future__ import annotations

import pytest
import torch

from tests.upstreams.encoders.small import randomise, small
from upstreams.encoders import build_encoder


@torch.no_grad()
def test_conformer_block_equals_torchaudios() -> None:
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)

    conformer = pytest.importorskip("torchaudio.models.conformer")
    config = small("conformer", positions="none", layers=1, activation="swish")
    ours = build_encoder(config)
    randomise(ours)
    ours.eval()
    block = ours.blocks[0]
    theirs = conformer.ConformerLayer(16, 32, 2, 5, dropout=0.0).eval()
    attention = theirs.self_attn
    for norm, reference in (
        (block.first_norm, theirs.ffn1.sequential[0]),
        (block.attention_norm, theirs.self_attn_layer_norm),
        (block.convolution_norm, theirs.conv_module.layer_norm),
        (block.second_norm, theirs.ffn2.sequential[0]),
        (block.norm, theirs.final_layer_norm),
        (block.first.expand, theirs.ffn1.sequential[1]),
        (block.first.contract, theirs.ffn1.sequential[4]),
        (block.second.expand, theirs.ffn2.sequential[1]),
        (block.second.contract, theirs.ffn2.sequential[4]),
        (block.attention.output, attention.out_proj),
        (block.convolution.norm, theirs.conv_module.sequential[3]),
    ):
        reference.load_state_dict(norm.state_dict())
    attention.in_proj_weight.copy_(
        torch.cat([getattr(block.attention, part).weight for part in ("query", "key", "value")])
    )
    attention.in_proj_bias.copy_(torch.cat([getattr(block.attention, part).bias for part in ("query", "key", "value")]))
    expand, _, depthwise, _, _, contract, *_ = theirs.conv_module.sequential
    for target, source in ((expand, block.convolution.expand), (contract, block.convolution.contract)):
        target.weight.copy_(source.weight[..., None])
        target.bias.copy_(source.bias)
    depthwise.weight.copy_(block.convolution.depthwise.convolution.weight.squeeze(-1))
    depthwise.bias.copy_(block.convolution.depthwise.convolution.bias)
    x = torch.randn(1, 23, 16)
    torch.testing.assert_close(
        ours(x, torch.tensor([23]))[1], theirs(x.transpose(0, 1), None).transpose(0, 1), atol=1e-5, rtol=0
    )
