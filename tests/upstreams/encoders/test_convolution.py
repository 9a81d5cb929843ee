"""Batch normalisation and depthwise convolution against PyTorch's."""

from __future__ import annotations

import torch
from torch import nn

from upstreams.encoders.convolution import BatchNorm, DepthwiseConvolution


def test_batch_norm_counts_valid_frames_only() -> None:
    norm = BatchNorm(4)
    x = torch.randn(3, 6, 4, requires_grad=True)
    padded = torch.arange(6) >= torch.tensor([6, 2, 4])[:, None]
    output = norm(x, padded[..., None])
    valid = x[~padded]
    reference = nn.BatchNorm1d(4)
    torch.testing.assert_close(output[~padded], reference(valid))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert not output[padded].any()
    output.square().sum().backward()
    assert not x.grad[padded].any()


@torch.no_grad()
def test_depthwise_convolution_equals_conv1d() -> None:
    for frames, stride in ((1, 1), (9, 1), (9, 2), (10, 2), (1, 2)):
        ours = DepthwiseConvolution(6, 5, stride)
        theirs = nn.Conv1d(6, 6, 5, stride, padding=2, groups=6)
        theirs.weight.copy_(ours.convolution.weight.squeeze(-1))
        theirs.bias.copy_(ours.convolution.bias)
        x = torch.randn(2, frames, 6)
        torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))
