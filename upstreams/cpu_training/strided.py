"""Convolutions of stride and kernel near one another as matrix products that copy nothing: HuBERT's, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from upstreams.cpu_training.products import product


def pieces(kernel: int, stride: int) -> list[tuple[int, int]]:
    """A kernel's taps in runs of at most `stride`: (first, taps). Rows of a run do not overlap one another."""
    return [(first, min(stride, kernel - first)) for first in range(0, kernel, stride)]


def rows(x: Tensor, first: int, taps: int, stride: int, count: int) -> Tensor:
    """(frames, channels) contiguous -> (count, taps * channels), a view: what a run of taps sees at each place."""
    channels = x.shape[1]
    return x.as_strided((count, taps * channels), (stride * channels, 1), x.storage_offset() + first * channels)


class StridedConvolution(torch.autograd.Function):
    """nn.functional.conv1d without padding on one utterance, frames first.

    x (frames, channels) contiguous, weight (out, channels, kernel) -> (places, out). With frames first every run of
    taps is a matrix whose rows lie `stride` frames apart, which a product takes as it is: nothing is reordered.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        kernel = weight.shape[2]
        count = (len(x) - kernel) // stride + 1
        taps_first = weight.transpose(1, 2).contiguous()  # (out, kernel, channels)
        parts = [
            product(rows(x, first, taps, stride, count), taps_first[:, first : first + taps].flatten(1))
            for first, taps in pieces(kernel, stride)
        ]
        ctx.save_for_backward(x, taps_first)
        ctx.stride = stride
        for part in parts[1:]:
            parts[0] += part
        return parts[0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, taps_first = ctx.saved_tensors
        stride, count = ctx.stride, len(gradient)
        runs = pieces(taps_first.shape[1], stride)
        gradient = gradient.contiguous()
        to_weight = torch.empty_like(taps_first)
        for first, taps in runs:
            seen = rows(x, first, taps, stride, count)
            to_weight[:, first : first + taps] = product(gradient.T, seen.T).unflatten(1, (taps, -1))
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.zeros_like(x)
            for first, taps in runs:
                piece = taps_first[:, first : first + taps].flatten(1)
                rows(to_x, first, taps, stride, count).add_(product(gradient, piece.T))
        return to_x, to_weight.transpose(1, 2), None
