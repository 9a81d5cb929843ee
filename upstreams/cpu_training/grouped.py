"""Grouped convolutions with a long kernel as a few large matrix products, for convolutional positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upstreams.cpu_training.products import product


class GroupedConvolution(torch.autograd.Function):
    """nn.functional.conv1d of stride 1: x (batch, channels, frames), weight (out, channels / groups, kernel).

    The kernel is split into `runs` runs of `taps` taps. One product computes the output of every run on every window of
    `taps` frames. An output frame is the sum over the runs, where run r takes the window that starts r * taps frames
    later. One product per tap would be slow, because a group has few channels.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
        kernel = weight.shape[2]
        taps = 1 << round(math.log2(kernel) / 2)
        runs = -(-kernel // taps)
        frames = x.shape[2] + 2 * padding - kernel + 1
        x = torch.nn.functional.pad(x, (padding, padding + runs * taps - kernel))
        x = x.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).contiguous()  # (groups, batch, frames, channels)
        weight = torch.nn.functional.pad(weight, (0, runs * taps - kernel))
        # (groups, runs * outputs, taps * channels)
        matrix = weight.view(groups, -1, weight.shape[1], runs, taps).permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
        outputs = matrix.shape[1] // runs
        y = x.new_empty(x.shape[1], frames, groups, outputs)
        for group in range(groups):
            unfolded = windows(x[group], taps)
            parts = product(unfolded.flatten(0, 1), matrix[group]).view(*unfolded.shape[:2], runs, outputs)
            torch.sum(aligned_runs(parts, taps, frames), 2, out=y[:, :, group])
        ctx.save_for_backward(x, matrix)
        ctx.shape = (kernel, padding, taps, runs)
        y = y.flatten(2) if bias is None else y.flatten(2) + bias
        return y.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        kernel, padding, taps, runs = ctx.shape
        groups, batch, length, channels = x.shape
        outputs, frames = matrix.shape[1] // runs, gradient.shape[2]
        by_group = gradient.unflatten(1, (groups, outputs)).permute(1, 0, 3, 2).contiguous()
        grad_x, grad_matrix = torch.zeros_like(x), torch.empty_like(matrix)
        grad_parts = x.new_zeros(batch, length - taps + 1, runs, outputs)
        flat = grad_parts.flatten(0, 1).flatten(1)
        for group in range(groups):
            aligned_runs(grad_parts, taps, frames).copy_(by_group[group].unsqueeze(2))
            grad_matrix[group] = product(flat.T, windows(x[group], taps).flatten(0, 1).T)
            grad_unfolded = product(flat, matrix[group].T).view(batch, -1, taps, channels)
            for tap in range(taps):
                grad_x[group, :, tap : tap + grad_unfolded.shape[1]] += grad_unfolded[:, :, tap]
        grad_x = grad_x.permute(1, 0, 3, 2).flatten(1, 2)[:, :, padding : padding + frames + kernel - 1 - 2 * padding]
        grad_weight = grad_matrix.view(groups, runs, outputs, taps, channels).permute(0, 2, 4, 1, 3)
        grad_weight = grad_weight.reshape(groups * outputs, channels, runs * taps)[:, :, :kernel]
        return grad_x, grad_weight, gradient.sum((0, 2)) if ctx.needs_input_grad[2] else None, None, None


def windows(x: Tensor, taps: int) -> Tensor:
    """Return all windows (batch, frames - taps + 1, taps * channels) of x (batch, frames, channels), contiguous."""
    batch, frames, channels = x.shape
    unfolded = x.as_strided(
        (batch, frames - taps + 1, taps * channels), (frames * channels, channels, 1), x.storage_offset()
    )
    return unfolded.contiguous()


def aligned_runs(parts: Tensor, taps: int, frames: int) -> Tensor:
    """Return a view (batch, frames, runs, outputs) of parts (batch, windows, runs, outputs), with run r at r * taps."""
    batch, _, runs, outputs = parts.shape
    of_batch, of_window, of_run, _ = parts.stride()
    return parts.as_strided((batch, frames, runs, outputs), (of_batch, of_window, of_run + taps * of_window, 1))
