"""Matrix products in training on a CPU: oneDNN instead of MKL, where oneDNN is faster.

PyTorch multiplies float32 matrices with MKL, which limits non-Intel CPUs to its AVX2 kernels. oneDNN, which PyTorch
uses for convolutions and half precision, runs AVX-512 kernels on every CPU that has AVX-512. They are twice as fast
(benchmarks/pretraining.py).
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

SMALLEST = 1 << 20  # multiply-accumulates from which a product runs on oneDNN


@functools.cache
def onednn_is_faster() -> bool:
    """True if this is an AMD processor with AVX-512, which MKL does not use there, and torch has oneDNN's product."""
    try:
        cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return (
        "AuthenticAMD" in cpu_info
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # a private operator
    )


def runs_on_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if `product` multiplies these by oneDNN: large float32 matrices, on a processor where oneDNN is faster."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.ndim == 2
        and x.numel() * len(weight) >= SMALLEST
        and onednn_is_faster()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias, (..., n), of x (..., k) and weight (n, k)."""
    if not runs_on_onednn(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    # Copying a transposed weight is faster than multiplying by it: 66 ms instead of 76 ms for 1560 rows of 3072 to 768.
    weight = weight.contiguous()
    # oneDNN is a thousand times slower with strides that are neither those of a matrix nor of its transpose.
    if x.stride(-1) != 1 and not x.mT.is_contiguous():
        x = x.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
