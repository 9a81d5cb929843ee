"""How well training uses its device: seconds of audio per second, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch

from upstreams import cost
from upstreams.config import SAMPLE_RATE
from upstreams.cpu_training.products import product
from upstreams.model import AudioEncoder

FORWARD_AND_BACKWARD = 3  # forward passes: the backward pass costs one for the inputs and one for the weights


def step_flops(model: AudioEncoder, longest: int) -> Callable[[list[int]], float]:
    """Return a function: lengths of a batch's utterances in samples -> FLOPs of a training step on them.

    A multiply-accumulate counts as two FLOPs. Padding and recomputation are not counted. The multiply-accumulates of an
    encoder are at most quadratic in the length, so three lengths up to `longest` samples determine them.
    """
    lengths = [max(SAMPLE_RATE // 4, longest * part // 3) for part in (1, 2, 3)]
    # Training does not compute the map of exported hidden states.
    macs = [sum(c.macs for c in cost.profile(model, [n]) if c.kind != "map") for n in lengths]
    curve = np.polynomial.Polynomial.fit(lengths, macs, min(2, len(set(lengths)) - 1))
    return lambda samples: 2 * FORWARD_AND_BACKWARD * float(curve(np.array(samples, dtype=float)).sum())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of a large square matrix product, by the library that training uses."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        product(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


class Meter:
    """Throughput of one rank since the last reading. peak: of the device, in FLOPs per second."""

    def __init__(self, device: torch.device, peak: float) -> None:
        self.device, self.peak = device, peak
        self._reset()

    def _reset(self) -> None:
        self.started, self.seconds, self.flops = time.perf_counter(), 0.0, 0.0

    def add(self, seconds: float, flops: float) -> None:
        """Add the seconds of audio of a micro-batch and the FLOPs of training on them."""
        self.seconds += seconds
        self.flops += flops

    def read(self, world_size: int) -> dict[str, float]:
        """Return what to log, assuming that all ranks do the same work, and reset the meter."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "audio_seconds_per_second": self.seconds * world_size / elapsed,
            "mfu": self.flops / elapsed / self.peak,
        }
        if self.device.type == "cuda" and importlib.util.find_spec("pynvml") is not None:
            values["gpu_utilisation"] = torch.cuda.utilization(self.device) / 100  # fraction of time with a kernel
        self._reset()
        return values
