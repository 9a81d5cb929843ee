"""Matrix products of training on a CPU by oneDNN instead of MKL, where that is faster.

PyTorch multiplies fp32 matrices by MKL, which gives processors of other makers than Intel its AVX2 kernels alone.
oneDNN, which PyTorch has for convolutions and half precision, uses AVX-512 on any: twice as fast
(benchmarks/pretraining.py).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 1 << 20  # multiply-accumulates of a product that is worth the call


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
        and x.numel() * len(weight) >= SMALLEST
        and faster()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., k), weight (n, k) -> x weight^T + bias, (..., n)."""
    if not suited(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    # A transposed weight costs more than its copy does: 76 ms against 66 with 1560 rows of 3072 to 768.
    weight = weight.contiguous()
    # Strides that are neither a matrix's nor its transpose's would be computed a thousand times more slowly.
    if x.stride(-1) != 1 and not x.mT.is_contiguous():
        x = x.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
