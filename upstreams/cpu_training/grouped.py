"""Grouped convolutions with a long kernel as a few large matrix products: the positions' in training on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upstreams.cpu_training.products import product


class GroupedConvolution(torch.autograd.Function):
    """nn.functional.conv1d of stride 1: x (batch, channels, frames), weight (out, channels / groups, kernel).

    The kernel's taps lie in `runs` runs of `taps`. Of every window of `taps` frames one product gives what each run
    makes of it, and an output frame is the sum over the runs, each from the window that lies so much later. With
    groups' few channels a product a tap would be too narrow to be fast.
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
            seen = windows(x[group], taps)
            parts = product(seen.flatten(0, 1), matrix[group]).view(*seen.shape[:2], runs, outputs)
            torch.sum(later(parts, taps, frames), 2, out=y[:, :, group])
        ctx.save_for_backward(x, matrix)
        ctx.shape = (kernel, padding, taps, runs)
        y = y.flatten(2) if bias is None else y.flatten(2) + bias
        return y.transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        kernel, padding, taps, runs = ctx.shape
        groups, batch, length, channels = x.shape
        outputs, frames = matrix.shape[1] // runs, gradient.shape[2]
        own = gradient.unflatten(1, (groups, outputs)).permute(1, 0, 3, 2).contiguous()
        to_x, to_matrix = torch.zeros_like(x), torch.empty_like(matrix)
        to_parts = x.new_zeros(batch, length - taps + 1, runs, outputs)
        flat = to_parts.flatten(0, 1).flatten(1)
        for group in range(groups):
            later(to_parts, taps, frames).copy_(own[group].unsqueeze(2))
            to_matrix[group] = product(flat.T, windows(x[group], taps).flatten(0, 1).T)
            to_seen = product(flat, matrix[group].T).view(batch, -1, taps, channels)
            for tap in range(taps):
                to_x[group, :, tap : tap + to_seen.shape[1]] += to_seen[:, :, tap]
        to_x = to_x.permute(1, 0, 3, 2).flatten(1, 2)[:, :, padding : padding + frames + kernel - 1 - 2 * padding]
        to_weight = to_matrix.view(groups, runs, outputs, taps, channels).permute(0, 2, 4, 1, 3)
        to_weight = to_weight.reshape(groups * outputs, channels, runs * taps)[:, :, :kernel]
        return to_x, to_weight, gradient.sum((0, 2)) if ctx.needs_input_grad[2] else None, None, None


def windows(x: Tensor, taps: int) -> Tensor:
    """(batch, frames, channels) contiguous -> (batch, frames - taps + 1, taps * channels): windows of `taps` frames."""
    batch, frames, channels = x.shape
    seen = x.as_strided(
        (batch, frames - taps + 1, taps * channels), (frames * channels, channels, 1), x.storage_offset()
    )
    return seen.contiguous()


def later(parts: Tensor, taps: int, frames: int) -> Tensor:
    """(batch, windows, runs, outputs) -> a view (batch, frames, runs, outputs), run r of the window r * taps later."""
    batch, _, runs, outputs = parts.shape
    a_batch, a_window, a_run, _ = parts.stride()
    return parts.as_strided((batch, frames, runs, outputs), (a_batch, a_window, a_run + taps * a_window, 1))
