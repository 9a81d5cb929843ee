"""A float model -> its quantized form: which modules there are, which bits each gets, and what it becomes.

Full precision stay, unless an override says otherwise: front-end, positions, depthwise convolutions and the layers
around a halved frame rate; always: norms, biases, residuals and the output's map. BiT (arXiv 2205.13016) has no
convolutions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upstreams.config import QuantizationConfig
from upstreams.encoders.attention import Attention, ScaledDotProduct
from upstreams.encoders.convolution import ConvolutionModule, DepthwiseConvolution
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions, RelativePositions
from upstreams.encoders.sparseformer import LocalAttention
from upstreams.errors import UserError, nearest
from upstreams.frontend import ConvolutionStem, LogMelFrontEnd
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import Quantizer
from upstreams.quantization.spec import FLOAT, Bits

if TYPE_CHECKING:
    from upstreams.model import AudioEncoder

# The kind of what lies inside; of nested ones the innermost counts.
_KINDS: dict[type[nn.Module], str] = {
    Attention: "attention",
    LocalAttention: "attention",
    FeedForward: "feed_forward",
    ConvolutionModule: "convolution",
    DepthwiseConvolution: "depthwise",
    ConvPositions: "positions",
    RelativePositions: "positions",
}
QUANTIZED = ("attention", "feed_forward", "convolution")  # the kinds that a model's bits reach by themselves


@dataclass(frozen=True)
class Site:
    """A module that can be quantized, and what it becomes."""

    name: str  # inside the model
    kind: str  # attention, feed_forward, convolution, depthwise, positions, resampling or front_end
    bits: Bits
    non_negative: bool = False  # its input comes out of a ReLU


def kinds(model: nn.Module) -> dict[str, str]:
    """Name -> kind of every module of an AudioEncoder that can be quantized or has been, in the model's order."""
    found: dict[str, str] = {}

    def visit(module: nn.Module, name: str, kind: str) -> None:
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, ScaledDotProduct, QuantConv1d, QuantMatmul)):
            found[name] = kind
            return
        kind = _KINDS.get(type(module), kind)
        for child, part in module.named_children():
            visit(part, f"{name}.{child}" if name else child, kind)

    for top, kind in (("front_end", "front_end"), ("encoder", "resampling")):
        visit(model.get_submodule(top), top, kind)
    return found


def quantize(model: AudioEncoder, bits: str, quantization: QuantizationConfig | None = None) -> list[Site]:
    """Quantize `model` in place and return what became what; parameters keep their names and values.

    bits: of the attention, feed-forward and convolution modules; `quantization`, the configuration's own when None,
    says what differs from that. Scales of activations and of weights of several bits are unset until `calibrate`.
    Raises UserError on bits outside the grammar, on an override that matches no module, and on a model that is
    quantized already.
    """
    quantization = model.config.quantization if quantization is None else quantization
    if any(isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)) for module in model.modules()):
        raise UserError(f"{model.config.name} is quantized already: quantize its float model")
    plan = _plan(model, Bits.parse(bits), quantization)
    sites = []
    for site in plan:
        product = isinstance(model.get_submodule(site.name), ScaledDotProduct)
        if site.bits == FLOAT or (product and site.bits.activation == FLOAT.activation):
            continue
        site = dataclasses.replace(site, non_negative=_input_is_non_negative(model, site, quantization))
        parent, _, name = site.name.rpartition(".")
        module = model.get_submodule(site.name)
        setattr(model.get_submodule(parent), name, _quantized(module, site, model, quantization))
        sites.append(site)
    model.config = dataclasses.replace(model.config, bits=bits, quantization=quantization)
    return sites


def _plan(model: AudioEncoder, bits: Bits, quantization: QuantizationConfig) -> list[Site]:
    """Every module with its bits."""
    found = kinds(model)
    chosen = {name: bits if kind in QUANTIZED else FLOAT for name, kind in found.items()}
    for pattern, text in quantization.overrides.items():
        override = Bits.parse(text)
        matched = [name for name, kind in found.items() if kind == pattern or fnmatchcase(name, pattern)]
        if not matched:
            closest = nearest(pattern, {*found.values(), *found})
            raise UserError(f"the override {pattern!r} matches no module of {model.config.name}: {closest}")
        chosen |= dict.fromkeys(matched, override)
    return [Site(name, kind, chosen[name]) for name, kind in found.items()]


def _quantized(module: nn.Module, site: Site, model: AudioEncoder, quantization: QuantizationConfig) -> nn.Module:
    if isinstance(module, ScaledDotProduct):
        return QuantMatmul(model.config.encoder.dim, site.bits.activation)
    per_channel = quantization.weight_scale == "channel"
    if isinstance(module, nn.Linear):
        return QuantLinear(module, site.bits, per_channel, site.non_negative)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    # A scale over all of a depthwise convolution's filters would share among channels what nothing else shares.
    depthwise = module.groups == module.out_channels
    return QuantConv1d(module, site.bits, per_channel or depthwise, site.non_negative)


def _input_is_non_negative(model: AudioEncoder, site: Site, quantization: QuantizationConfig) -> bool:
    """Whether a site's input comes out of a ReLU, after putting one there where the configuration wants one."""
    parent, _, name = site.name.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, FeedForward) and name == "contract":
        if _wants_relu(quantization.feed_forward_input, site.bits):
            owner.activation = nn.ReLU()
        return isinstance(owner.activation, nn.ReLU)
    if isinstance(owner, ConvolutionModule) and name == "contract":
        if _wants_relu(quantization.convolution_input, site.bits):
            owner.activation = nn.ReLU()
        return isinstance(owner.activation, nn.ReLU)
    if isinstance(owner, DepthwiseConvolution) and parent.endswith(".convolution.depthwise"):
        module = model.get_submodule(parent.rpartition(".")[0])
        assert isinstance(module, ConvolutionModule)
        if not _wants_relu(quantization.convolution_input, site.bits):
            return False
        # A GLU also halves the channels: it stays, and the ReLU follows it.
        module.gate = nn.Sequential(module.gate, nn.ReLU()) if isinstance(module.gate, nn.GLU) else nn.ReLU()
        return True
    # The convolutional stem has ReLUs of its own: behind its first convolution and at its end.
    stem = model.get_submodule("front_end.stem") if isinstance(owner, (ConvolutionStem, LogMelFrontEnd)) else None
    return isinstance(stem, ConvolutionStem) and name in ("depthwise", "projection")


def _wants_relu(choice: str, bits: Bits) -> bool:
    return choice == "relu" or (choice == "auto" and 1 in (bits.weight, bits.activation))


def summary(sites: list[Site]) -> list[str]:
    """One line for each kind, bits and sort of input: "attention: 32 w1a1, input signed"."""
    counts = Counter(
        (site.kind, str(site.bits), "from 0 up (behind a ReLU)" if site.non_negative else "signed") for site in sites
    )
    return [f"{kind}: {count} modules {bits}, input {values}" for (kind, bits, values), count in counts.items()]


@torch.no_grad()
def calibrate(model: AudioEncoder, waveforms: Tensor, lengths: Tensor) -> None:
    """Set every scale that is not yet calibrated, from waveforms (batch, samples) and their lengths (batch,).

    Only the batch's longest utterances are used: padding must touch no statistic. Later quantizers see what earlier
    ones have already quantized.
    """
    whole = lengths == lengths.max()
    with calibrating(model):
        model(waveforms[whole][:, : int(lengths.max())], lengths[whole])


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside it, every forward pass sets the scales that are not yet calibrated, each from what it is given.

    The pass must hold no padding.
    """
    handles = [
        module.register_forward_pre_hook(_set_scale)
        for module in model.modules()
        if isinstance(module, Quantizer) and not bool(module.calibrated)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set_scale(module: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(module, Quantizer)
    if not bool(module.calibrated):
        module.calibrate(inputs[0])


def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's parameters and buffers, and the state of those quantizers that are alike in both.

    What is left, the scales of quantizers that are new or have other bits, is for `calibrate` to set. Raises
    UserError when the modules are not the same otherwise.
    """
    theirs = dict(teacher.named_modules())
    state = teacher.state_dict()
    own = student.state_dict()
    for name, module in student.named_modules():
        if not isinstance(module, Quantizer):
            continue
        other = theirs.get(name)
        alike = isinstance(other, Quantizer) and _description(module) == _description(other)
        for key in module.state_dict():
            full = f"{name}.{key}"
            state[full] = state[full] if alike else own[full]
    quantizers = [f"{name}." for name, module in theirs.items() if isinstance(module, Quantizer)]
    kept = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(quantizers))}
    try:
        student.load_state_dict(kept)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise UserError(f"teacher and student are of different architectures: {problem}") from error


def _description(quantizer: Quantizer) -> tuple[object, ...]:
    return type(quantizer), quantizer.bits, quantizer.signed, quantizer.alpha.shape
