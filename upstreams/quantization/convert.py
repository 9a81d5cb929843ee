"""Converts a float model to a quantized one: its quantizable modules, the bits of each, and their replacement.

Front-end, positions, depthwise convolutions and the layers around a halved frame rate stay in full precision unless
overridden; norms, biases, residuals and the output map always do. BiT (arXiv 2205.13016) has no convolutions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upstreams.config import QuantizationConfig
from upstreams.encoders.attention import Attention, ScaledDotProduct
from upstreams.encoders.convolution import ConvolutionModule, DepthwiseConvolution
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions, RelativePositions
from upstreams.encoders.sparseformer import LocalAttention
from upstreams.errors import UserError, nearest
from upstreams.frontend import ConvolutionStem
from upstreams.model import AudioEncoder, in_eval_mode
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import Quantizer
from upstreams.quantization.spec import FLOAT, Bits, bits_of_module, matches, wants_relu

# The kind of the modules inside each of these; the innermost of nested ones counts.
_KINDS: dict[type[nn.Module], str] = {
    Attention: "attention",
    LocalAttention: "attention",
    FeedForward: "feed_forward",
    ConvolutionModule: "convolution",
    DepthwiseConvolution: "depthwise",
    ConvPositions: "positions",
    RelativePositions: "positions",
}


@dataclass(frozen=True)
class Site:
    """A module that can be quantized, and how."""

    name: str  # inside the model
    kind: str  # attention, feed_forward, convolution, depthwise, positions, resampling or front_end
    bits: Bits
    non_negative: bool = False  # its input comes from a ReLU


def kinds(model: nn.Module) -> dict[str, str]:
    """Return name -> kind of all modules of an AudioEncoder that can be or are quantized, in the model's order."""
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
    """Quantize `model` in place and return the sites; parameters keep their names and values.

    bits: of the attention, feed-forward and convolution modules. quantization: overrides and choices; None: those of
    the model's configuration. Learned scales are unset until `calibrate`. Raises UserError on invalid bits, on an
    override that matches no module, and on a model that is quantized already.
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
        _put_relu_before(model, site, quantization)
        site = dataclasses.replace(site, non_negative=_comes_from_relu(model, site))
        parent, _, name = site.name.rpartition(".")
        module = model.get_submodule(site.name)
        setattr(model.get_submodule(parent), name, _quantized(module, site, model, quantization))
        sites.append(site)
    model.config = dataclasses.replace(model.config, bits=bits, quantization=quantization)
    return sites


def _plan(model: AudioEncoder, bits: Bits, quantization: QuantizationConfig) -> list[Site]:
    """Return a site with its bits for every quantizable module."""
    found = kinds(model)
    overrides = {pattern: Bits.parse(text) for pattern, text in quantization.overrides.items()}
    for pattern in overrides:
        if not any(matches(pattern, name, kind) for name, kind in found.items()):
            closest = nearest(pattern, {*found.values(), *found})
            raise UserError(f"the override {pattern!r} matches no module of {model.config.name}: {closest}")
    return [Site(name, kind, bits_of_module(name, kind, bits, overrides)) for name, kind in found.items()]


def _quantized(module: nn.Module, site: Site, model: AudioEncoder, quantization: QuantizationConfig) -> nn.Module:
    if isinstance(module, ScaledDotProduct):
        return QuantMatmul(model.config.encoder.dim, site.bits.activation)
    per_channel = quantization.weight_scale == "channel"
    if isinstance(module, nn.Linear):
        return QuantLinear(module, site.bits, per_channel, site.non_negative)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    # The filters of a depthwise convolution have nothing in common that would justify a shared scale.
    depthwise = module.groups == module.out_channels
    return QuantConv1d(module, site.bits, per_channel or depthwise, site.non_negative)


def _activation_before(model: AudioEncoder, site: Site) -> tuple[FeedForward | ConvolutionModule, str] | None:
    """Return the module that owns the activation before a site, and the attribute's name; None if there is none."""
    parent, _, child = site.name.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, (FeedForward, ConvolutionModule)) and child == "contract":
        return owner, "activation"
    if isinstance(owner, DepthwiseConvolution):
        module = model.get_submodule(parent.rpartition(".")[0])
        if isinstance(module, ConvolutionModule):
            return module, "gate"
    return None


def _put_relu_before(model: AudioEncoder, site: Site, quantization: QuantizationConfig) -> None:
    """Put a ReLU before a site if it follows an exchangeable activation and the configuration asks for a ReLU."""
    found = _activation_before(model, site)
    if found is None:
        return
    module, attribute = found
    is_feed_forward = isinstance(module, FeedForward)
    choice = quantization.feed_forward_input if is_feed_forward else quantization.convolution_input
    if wants_relu(choice, site.bits):
        activation = getattr(module, attribute)
        # A GLU also halves the channels: it stays, and the ReLU follows it.
        relu = nn.Sequential(activation, nn.ReLU()) if isinstance(activation, nn.GLU) else nn.ReLU()
        setattr(module, attribute, relu)


def _comes_from_relu(model: AudioEncoder, site: Site) -> bool:
    """True if the input of a site is the output of a ReLU."""
    found = _activation_before(model, site)
    if found is not None:
        activation = getattr(*found)
        return isinstance(activation[-1] if isinstance(activation, nn.Sequential) else activation, nn.ReLU)
    # The convolutional stem has ReLUs of its own: after its first convolution and at its end.
    has_relus = isinstance(getattr(model.front_end, "stem", None), ConvolutionStem)
    return has_relus and site.name in ("front_end.stem.depthwise", "front_end.projection")


def summary(sites: list[Site]) -> list[str]:
    """Return a line for each kind, bits and sign of the input: "attention: 32 modules w1a1, input signed"."""
    counts = Counter(
        (site.kind, str(site.bits), "from 0 up (after a ReLU)" if site.non_negative else "signed") for site in sites
    )
    return [f"{kind}: {count} modules {bits}, input {values}" for (kind, bits, values), count in counts.items()]


@torch.no_grad()
def calibrate(model: AudioEncoder, waveforms: Tensor, lengths: Tensor) -> None:
    """Set all scales that are not calibrated yet, from waveforms (batch, samples) with lengths (batch,) in samples.

    Only the longest utterances of the batch are used, because padding must not enter the statistics. Each quantizer
    sees the output of the quantizers before it. The model runs in eval mode, whatever its mode.
    """
    longest = lengths == lengths.max()
    with calibrating(model), in_eval_mode(model):
        model(waveforms[longest][:, : int(lengths.max())], lengths[longest])


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside this context, a forward pass sets every scale that is not calibrated yet, from its quantizer's input.

    The batch must have no padding.
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
    """Copy the teacher's parameters and buffers, and the state of the quantizers that are alike in both.

    The scales of new quantizers, and of quantizers with other bits, are left to `calibrate`. Raises UserError if the
    modules differ otherwise.
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
        raise UserError(f"teacher and student have different architectures: {problem}") from error


def _description(quantizer: Quantizer) -> tuple[object, ...]:
    return type(quantizer), quantizer.bits, quantizer.signed, quantizer.alpha.shape
