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

BACKWARD = 3  # a training step costs a forward pass and, for inputs and weights, twice as much again


def step_flops(model: AudioEncoder, longest: int) -> Callable[[list[int]], float]:
    """What gives the FLOPs of a training step over utterances of so many samples, two a multiply-accumulate.

    Forward and backward, padding and recomputation not counted. An encoder's multiply-accumulates are at most
    quadratic in the length, so three lengths up to `longest` samples tell them all.
    """
    lengths = [max(SAMPLE_RATE // 4, longest * part // 3) for part in (1, 2, 3)]
    # The map of exported hidden states takes no part in training.
    macs = [sum(c.macs for c in cost.profile(model, [n]) if c.kind != "map") for n in lengths]
    curve = np.polynomial.Polynomial.fit(lengths, macs, min(2, len(set(lengths)) - 1))
    return lambda samples: 2 * BACKWARD * float(curve(np.array(samples, dtype=float)).sum())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large product of square matrices on the device, by the library that training uses."""
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
    """Adds up what was trained on since it was last read. peak: of the device, in FLOPs a second."""

    def __init__(self, device: torch.device, peak: float) -> None:
        self.device, self.peak = device, peak
        self._restart()

    def _restart(self) -> None:
        self.started, self.seconds, self.flops = time.perf_counter(), 0.0, 0.0

    def add(self, seconds: float, flops: float) -> None:
        """Count so many seconds of audio, and the FLOPs that training on them took."""
        self.seconds += seconds
        self.flops += flops

    def read(self, processes: int) -> dict[str, float]:
        """What to log, of all processes alike, and start anew."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "audio_seconds_per_second": self.seconds * processes / elapsed,
            "mfu": self.flops / elapsed / self.peak,
        }
        if self.device.type == "cuda" and importlib.util.find_spec("pynvml") is not None:
            values["gpu_utilisation"] = torch.cuda.utilization(self.device) / 100  # of time that some kernel ran
        self._restart()
        return values
