"""Matrix products of training on a CPU by oneDNN instead of MKL, where that is faster.

PyTorch multiplies fp32 matrices by MKL, which gives processors of other makers than Intel its AVX2 kernels alone.
oneDNN, which PyTorch has for convolutions and half precision, uses AVX-512 on any: twice as fast
(benchmarks/pretraining.py).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@functools.cache
def faster() -> bool:
    """Whether this processor is one that MKL holds back."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return (
        "AuthenticAMD" in told
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def suited(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply these: on such a processor, in fp32, and more than a few numbers."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.ndim == 2
        and x.numel() * len(weight) >= 1 << 20
        and faster()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., k), weight (n, k) -> x weight^T + bias, (..., n)."""
    if not suited(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    # Strides that are neither a matrix's nor its transpose's would be computed a thousand times more slowly.
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()
    if x.stride(-1) != 1 and not x.mT.is_contiguous():
        x = x.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """nn.functional.linear, whose three products are `product`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        to_x = product(flat, weight.T).view_as(x) if ctx.needs_input_grad[0] else None
        to_weight = product(flat.T, x.reshape(-1, x.shape[-1]).T) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


class FastProducts(TorchFunctionMode):
    """Inside it nn.functional.linear and its backward pass go the faster way; nothing else changes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs and not torch.is_autocast_enabled("cpu"):
            x, weight, *bias = args
            if suited(x, weight):
                x = x if x.ndim == 2 else x.contiguous()
                return _Linear.apply(x, weight, bias[0] if bias else None)
        return func(*args, **(kwargs or {}))
