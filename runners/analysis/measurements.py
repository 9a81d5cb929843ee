"""What an analysis measures: signal-to-noise ratios of modules, and the similarity of hidden states."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Ratio:
    """A signal-to-quantization-noise ratio, summed over utterances and modules."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Add the energy of `reference` to the signal, and that of `other - reference` to the noise."""
        self.signal += float(reference.double().square().sum())
        self.noise += float((other.double() - reference.double()).square().sum())

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.signal + other.signal, self.noise + other.noise)

    @property
    def decibels(self) -> float | None:
        """10 log10(signal / noise); None if signal or noise is zero."""
        if not self.signal or not self.noise:
            return None
        return float(10 * torch.log10(torch.tensor(self.signal / self.noise, dtype=torch.float64)))


@dataclass
class Measurement:
    """The ratios of one module.

    local: only this module is quantized. propagated: this module and all modules before it are quantized.
    """

    name: str
    kind: str
    is_part: bool  # a whole attention, convolution or feed-forward, not a module inside one
    bits: str = ""
    weight: Ratio = field(default_factory=Ratio)
    local_input: Ratio = field(default_factory=Ratio)
    local_output: Ratio = field(default_factory=Ratio)
    propagated_input: Ratio = field(default_factory=Ratio)
    propagated_output: Ratio = field(default_factory=Ratio)

    @property
    def block(self) -> int | None:
        """The block that contains the module, counted from 0; None outside the blocks."""
        match = re.match(r"encoder\.blocks\.(\d+)\.", self.name)
        return int(match[1]) if match else None


@dataclass
class Analysis:
    """All measurements in the order of computation, and the similarity of each hidden state, the input first."""

    measurements: list[Measurement]
    similarity: list[float]

    def parts(self) -> list[Measurement]:
        """Return the measurements of whole parts only."""
        return [m for m in self.measurements if m.is_part]

    def by_kind(self) -> dict[str, Measurement]:
        """Return the ratios of each kind of part, summed over the blocks; weights: those of the modules inside."""
        totals: dict[str, Measurement] = {}
        for part in self.parts():
            total = totals.setdefault(part.kind, Measurement("all blocks", part.kind, is_part=True))
            inside = [m for m in self.measurements if not m.is_part and m.name.startswith(f"{part.name}.")]
            for module in inside:
                total.weight += module.weight
            for key in ("local_output", "propagated_input", "propagated_output"):
                setattr(total, key, getattr(total, key) + getattr(part, key))
        return totals


class Similarity:
    """Linear CKA (arXiv 1905.00414, section 3) of two sets of features, over all frames added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add features of the same frames: x and y are (frames, dim)."""
        x, y = x.double(), y.double()
        sums = x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y
        self.sums = tuple(a + b for a, b in zip(self.sums, sums, strict=True)) if self.sums else sums
        self.count += len(x)

    @property
    def value(self) -> float:
        """|X^T Y|^2 / (|X^T X| |Y^T Y|) of centred features: 1 if equal up to rotation and scale, else less."""
        x, y, xx, yy, xy = self.sums
        xx = xx - torch.outer(x, x) / self.count
        yy = yy - torch.outer(y, y) / self.count
        xy = xy - torch.outer(x, y) / self.count
        return float(xy.square().sum() / (xx.norm() * yy.norm()))
