"""Convolutions whose stride is near their kernel size, such as HuBERT's, as matrix products without a copy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upstreams.cpu_training.products import product


def runs_of_taps(kernel: int, stride: int) -> list[tuple[int, int]]:
    """Split a kernel into runs of at most `stride` taps, so that the windows of a run do not overlap: (first, taps)."""
    return [(first, min(stride, kernel - first)) for first in range(0, kernel, stride)]


def rows(x: Tensor, first: int, taps: int, stride: int, count: int) -> Tensor:
    """Return a view (count, taps * channels) of x (frames, channels), contiguous: the windows of a run of taps."""
    channels = x.shape[1]
    return x.as_strided((count, taps * channels), (stride * channels, 1), x.storage_offset() + first * channels)


class StridedConvolution(torch.autograd.Function):
    """nn.functional.conv1d without padding on one utterance, with frames first.

    x: (frames, channels), contiguous. weight: (outputs, channels, kernel). Returns (output frames, outputs). With
    frames first, the windows of a run of taps are the rows of a matrix, `stride` frames apart, which a product takes
    without a copy.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        kernel = weight.shape[2]
        count = (len(x) - kernel) // stride + 1
        taps_first = weight.transpose(1, 2).contiguous()  # (outputs, kernel, channels)
        parts = [
            product(rows(x, first, taps, stride, count), taps_first[:, first : first + taps].flatten(1))
            for first, taps in runs_of_taps(kernel, stride)
        ]
        ctx.save_for_backward(x, taps_first)
        ctx.stride = stride
        for part in parts[1:]:
            parts[0] += part
        return parts[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, taps_first = ctx.saved_tensors
        stride, count = ctx.stride, len(gradient)
        runs = runs_of_taps(taps_first.shape[1], stride)
        gradient = gradient.contiguous()
        grad_weight = torch.empty_like(taps_first)
        for first, taps in runs:
            windows = rows(x, first, taps, stride, count)
            grad_weight[:, first : first + taps] = product(gradient.T, windows.T).unflatten(1, (taps, -1))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            for first, taps in runs:
                run = taps_first[:, first : first + taps].flatten(1)
                rows(grad_x, first, taps, stride, count).add_(product(gradient, run.T))
        return grad_x, grad_weight.transpose(1, 2), None
