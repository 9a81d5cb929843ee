"""`superbit analyse`: where quantization error enters a model, and how it travels (docs/quantization.md)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from upstreams.config import SAMPLE_RATE
from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import kinds
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import Quantizer

# A block's parts: what the residual stream is added to, whole, with every quantized module inside.
PARTS: dict[type[nn.Module], str] = {
    Attention: "attention",
    ConvolutionModule: "convolution",
    FeedForward: "feed_forward",
}
Arguments = tuple[Any, ...]


@dataclass
class Ratio:
    """A signal-to-quantization-noise ratio that adds up over utterances and modules."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Count `reference` as signal and what `other` differs from it as noise."""
        self.signal += float(reference.double().square().sum())
        self.noise += float((other.double() - reference.double()).square().sum())

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.signal + other.signal, self.noise + other.noise)

    @property
    def decibels(self) -> float | None:
        """10 log10(signal / noise); None where there is no noise or nothing was counted."""
        if not self.signal or not self.noise:
            return None
        return float(10 * torch.log10(torch.tensor(self.signal / self.noise, dtype=torch.float64)))


@dataclass
class Measurement:
    """The ratios of one module: local, with nothing but it quantized, and propagated, with all before it as well."""

    name: str
    kind: str
    part: bool  # attention, convolution or feed-forward as a whole, not a module inside
    bits: str = ""
    weight: Ratio = field(default_factory=Ratio)
    local_input: Ratio = field(default_factory=Ratio)
    local_output: Ratio = field(default_factory=Ratio)
    propagated_input: Ratio = field(default_factory=Ratio)
    propagated_output: Ratio = field(default_factory=Ratio)

    @property
    def block(self) -> int | None:
        """The block it lies in, counted from 0."""
        match = re.match(r"encoder\.blocks\.(\d+)\.", self.name)
        return int(match[1]) if match else None


@dataclass
class Analysis:
    """All measurements in the order of use, and the similarity of every hidden state, the encoder's input first."""

    measurements: list[Measurement]
    similarity: list[float]

    def parts(self) -> list[Measurement]:
        """Of whole parts of blocks only."""
        return [m for m in self.measurements if m.part]

    def by_kind(self) -> dict[str, Measurement]:
        """Signals and noises of each kind of part added up over the blocks; weights are those of the modules inside."""
        totals: dict[str, Measurement] = {}
        for part in self.parts():
            total = totals.setdefault(part.kind, Measurement("all blocks", part.kind, part=True))
            inside = [m for m in self.measurements if not m.part and m.name.startswith(f"{part.name}.")]
            for module in inside:
                total.weight += module.weight
            for key in ("local_output", "propagated_input", "propagated_output"):
                setattr(total, key, getattr(total, key) + getattr(part, key))
        return totals


class Similarity:
    """Linear CKA (arXiv 1905.00414, section 3) of two sets of features over all frames that were added."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, x: Tensor, y: Tensor) -> None:
        """x and y: (frames, dim) of the same frames."""
        x, y = x.double(), y.double()
        sums = x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y
        self.sums = tuple(a + b for a, b in zip(self.sums, sums, strict=True)) if self.sums else sums
        self.count += len(x)

    @property
    def value(self) -> float:
        """|X^T Y|^2 / (|X^T X| |Y^T Y|) of centred features: 1 when equal up to rotation and scale, else less."""
        x, y, xx, yy, xy = self.sums
        xx = xx - torch.outer(x, x) / self.count
        yy = yy - torch.outer(y, y) / self.count
        xy = xy - torch.outer(x, y) / self.count
        return float(xy.square().sum() / (xx.norm() * yy.norm()))


def analyse(path: Path, against: Path | None, waveforms: list[Tensor]) -> Analysis:
    """Measure a quantized checkpoint on waveforms (samples,) at 16 kHz.

    against: the float checkpoint that is the reference; None takes the quantized one's own full-precision weights with
    all quantizers left out. Raises UserError when `path` is not quantized, or `against` is, or is of another
    architecture.
    """
    model = checkpoint.load(path)
    if not any(isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)) for module in model.modules()):
        raise UserError(f"{path} is a float model ({model.config.bits}): there is no quantization to analyse")
    if against is None:
        reference = without_quantizers(model)
    else:
        reference = checkpoint.load(against)
        if any(isinstance(module, Quantizer) for module in reference.modules()) or reference.config.bits != "w32a32":
            raise UserError(f"{against} is quantized ({reference.config.bits}): --against needs a float checkpoint")
        if (reference.config.encoder, reference.config.front_end) != (model.config.encoder, model.config.front_end):
            raise UserError(
                f"{against} ({reference.config.name}) is of another architecture than {path} ({model.config.name})"
            )
    return compare(model, reference, waveforms)


def without_quantizers(model: AudioEncoder) -> AudioEncoder:
    """The float model with the same weights and activation functions, ReLUs that quantization put in included."""
    twin = AudioEncoder(dataclasses.replace(model.config, bits="w32a32")).eval()
    for name, module in model.named_modules():
        if isinstance(module, (FeedForward, ConvolutionModule)):
            other = twin.get_submodule(name)
            other.activation = module.activation
            if isinstance(module, ConvolutionModule):
                other.gate = module.gate
    wanted = twin.state_dict()
    twin.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in wanted})
    return twin


@torch.no_grad()
def compare(model: AudioEncoder, reference: AudioEncoder, waveforms: list[Tensor]) -> Analysis:
    """Measure every quantized module, and every part that holds one, of `model` against `reference`."""
    found = _measurements(model)
    similarity = [Similarity() for _ in range(model.config.encoder.layers + 1)]
    order: list[str] = []
    for waveform in tqdm(waveforms, desc="analyse", unit="utt"):
        # One utterance at a time: there is no padding.
        with _recording(reference, found) as wanted:
            float_states = reference(waveform)
        with _recording(model, found) as heard:
            states = model(waveform)
        order = order or list(wanted)
        for name, (inputs, output) in wanted.items():
            measurement, module = found[name], model.get_submodule(name)
            counted = _counted(module, inputs, float_states[0].shape[1])
            _add(measurement.propagated_input, inputs, heard[name][0], counted)
            _add(measurement.propagated_output, (output,), (heard[name][1],), counted)
            # The float network with nothing but this module quantized: up to here it is the float network.
            _add(measurement.local_output, (output,), (module(*inputs),), counted)
            if (quantized := _quantized_inputs(module, inputs)) is not None:
                _add(measurement.local_input, inputs, quantized, counted)
        for layer, (theirs, ours) in enumerate(zip(float_states, states, strict=True)):
            similarity[layer].add(theirs[0], ours[0])
    return Analysis([found[name] for name in order], [s.value for s in similarity])


def _measurements(model: AudioEncoder) -> dict[str, Measurement]:
    """One for each quantized module, with the ratio of its weights, and one for each part that holds any."""
    found = {}
    for name, kind in kinds(model).items():
        module = model.get_submodule(name)
        if isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)):
            found[name] = Measurement(name, kind, part=False, bits=str(module.bits))
            if not isinstance(module, QuantMatmul) and module.bits.weight < 32:
                found[name].weight.add(module.weight, module.weight_quantizer(module.weight))
    inside = list(found)
    for name, module in model.named_modules():
        if type(module) in PARTS and any(site.startswith(f"{name}.") for site in inside):
            found[name] = Measurement(name, PARTS[type(module)], part=True)
    return found


@contextmanager
def _recording(model: AudioEncoder, names: dict[str, Measurement]) -> Iterator[dict[str, tuple[Arguments, Tensor]]]:
    """Inside it, the arguments and the output of every named module are kept, in the order in which they end."""
    kept: dict[str, tuple[Arguments, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: kept.__setitem__(name, (inputs, output))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _add(ratio: Ratio, reference: Arguments, other: Arguments, counted: Sequence[Tensor | None]) -> None:
    """Count the tensors that carry the signal, as many as there are in `counted`, where those say so (None: all)."""
    for ours, theirs, mask in zip(reference, other, counted, strict=False):
        ratio.add(ours, theirs) if mask is None else ratio.add(ours * mask, theirs * mask)


def _counted(module: nn.Module, inputs: Arguments, frames: int) -> list[Tensor | None]:
    """Which entries of each input that carries the signal are of the utterance; the first one's are the output's, too.

    The windows of local attention reach over an utterance's ends, and so does the last block of queries. Keys and
    values are zero there; what a quantizer makes of them goes nowhere.
    """
    if not isinstance(module, QuantMatmul):
        return [None]
    query, key, value = inputs[:3]
    blocks, _, size, _ = query.shape
    number = torch.arange(blocks * size, device=query.device).view(blocks, 1, size, 1)
    return [number < frames, (key != 0).any(-1, keepdim=True), (value != 0).any(-1, keepdim=True)]


def _quantized_inputs(module: nn.Module, inputs: Arguments) -> Arguments | None:
    """What a module computes with in place of its inputs; None where they stay float."""
    if isinstance(module, QuantMatmul):
        query, key, value = inputs[:3]
        return module.query(query), module.key(key), module.value(value)
    if isinstance(module, QuantLinear) and module.input is not None:
        return (module.input(inputs[0]),)
    if isinstance(module, QuantConv1d) and module.input is not None:
        return (module.quantized_input(inputs[0]),)
    return None


def read_audio(manifest: Path | None, files: list[Path], seconds: float) -> list[Tensor]:
    """Waveforms of the files, or of utterances spread evenly over the manifest, about that many seconds of them.

    Raises UserError when both or neither are given and when a file cannot be read.
    """
    if (manifest is None) == (not files):
        raise UserError("analyse needs real audio: name a --manifest or audio files, one of the two")
    if manifest is None:
        return [torch.from_numpy(load_audio(path)) for path in files]
    listed = Manifest.read(manifest)
    wanted = max(1, round(seconds * SAMPLE_RATE * len(listed) / sum(listed.samples)))
    step = max(1, len(listed) // wanted)
    return [torch.from_numpy(load_audio(listed.root / path)) for path in listed.paths[::step][:wanted]]
