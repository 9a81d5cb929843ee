"""`superbit analyse`: where quantization error enters a model, and how it propagates (docs/quantization.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from runners.analysis.measurements import Analysis, Measurement, Ratio, Similarity
from upstreams.config import SAMPLE_RATE
from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import ConvolutionModule
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.sparseformer import LocalAttention
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import kinds
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import Quantizer

# The parts of a block: each is a whole branch of the residual stream, with all its quantized modules.
PARTS: dict[type[nn.Module], str] = {
    Attention: "attention",
    LocalAttention: "attention",
    ConvolutionModule: "convolution",
    FeedForward: "feed_forward",
}
Arguments = tuple[Any, ...]


def analyse(path: Path, against: Path | None, waveforms: list[Tensor]) -> Analysis:
    """Measure a quantized checkpoint on waveforms (samples,) at 16 kHz.

    against: the float checkpoint to compare with; None compares with the same weights without quantizers. Raises
    UserError if `path` is not quantized, or if `against` is quantized or has another architecture.
    """
    model = checkpoint.load(path)
    if not any(isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)) for module in model.modules()):
        raise UserError(f"{path} is a float model ({model.config.bits}): give a quantized checkpoint")
    if against is None:
        reference = without_quantizers(model)
    else:
        reference = checkpoint.load(against)
        if any(isinstance(module, Quantizer) for module in reference.modules()) or reference.config.bits != "w32a32":
            raise UserError(f"{against} is quantized ({reference.config.bits}): --against needs a float checkpoint")
        if (reference.config.encoder, reference.config.front_end) != (model.config.encoder, model.config.front_end):
            raise UserError(
                f"{against} ({reference.config.name}) and {path} ({model.config.name}) have different architectures:"
                " give a float checkpoint of the same encoder and front end"
            )
    return compare(model, reference, waveforms)


def without_quantizers(model: AudioEncoder) -> AudioEncoder:
    """Return the float model with the same weights and activations, including the ReLUs that quantization inserted."""
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
    """Measure each quantized module of `model`, and each part that contains one, against `reference`."""
    found = _measurements(model)
    similarity = [Similarity() for _ in range(model.config.encoder.layers + 1)]
    order: list[str] = []
    for waveform in tqdm(waveforms, desc="analyse", unit="utt"):
        # One utterance at a time, so there is no padding.
        with _recording(reference, found) as float_calls:
            float_states = reference(waveform)
        with _recording(model, found) as calls:
            states = model(waveform)
        order = order or list(float_calls)
        for name, (inputs, output) in float_calls.items():
            measurement, module = found[name], model.get_submodule(name)
            masks = _valid_masks(module, inputs, float_states[0].shape[1])
            _add(measurement.propagated_input, inputs, calls[name][0], masks)
            _add(measurement.propagated_output, (output,), (calls[name][1],), masks)
            # With only this module quantized, its inputs are those of the float model.
            _add(measurement.local_output, (output,), (module(*inputs),), masks)
            if (quantized := _quantized_inputs(module, inputs)) is not None:
                _add(measurement.local_input, inputs, quantized, masks)
        for layer, (theirs, ours) in enumerate(zip(float_states, states, strict=True)):
            similarity[layer].add(theirs[0], ours[0])
    return Analysis([found[name] for name in order], [s.value for s in similarity])


def _measurements(model: AudioEncoder) -> dict[str, Measurement]:
    """Return a measurement for each quantized module, with its weights' ratio, and for each part that contains one."""
    found = {}
    for name, kind in kinds(model).items():
        module = model.get_submodule(name)
        if isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)):
            found[name] = Measurement(name, kind, is_part=False, bits=str(module.bits))
            if not isinstance(module, QuantMatmul) and module.bits.weight < 32:
                found[name].weight.add(module.weight, module.weight_quantizer(module.weight))
    quantized = list(found)
    for name, module in model.named_modules():
        if type(module) in PARTS and any(other.startswith(f"{name}.") for other in quantized):
            found[name] = Measurement(name, PARTS[type(module)], is_part=True)
    return found


@contextmanager
def _recording(model: AudioEncoder, names: dict[str, Measurement]) -> Iterator[dict[str, tuple[Arguments, Tensor]]]:
    """Yield a dict that receives the arguments and the output of each named module, in the order in which they end."""
    calls: dict[str, tuple[Arguments, Tensor]] = {}

    def record(name: str) -> Any:
        return lambda module, inputs, output: calls.__setitem__(name, (inputs, output))

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _add(ratio: Ratio, reference: Arguments, other: Arguments, masks: Sequence[Tensor | None]) -> None:
    """Add the first tensors to the ratio, one for each mask in `masks`: only where the mask is True (None: all)."""
    for ours, theirs, mask in zip(reference, other, masks, strict=False):
        ratio.add(ours, theirs) if mask is None else ratio.add(ours * mask, theirs * mask)


def _valid_masks(module: nn.Module, inputs: Arguments, frames: int) -> list[Tensor | None]:
    """Return for each input that carries signal the mask of its valid entries; the first mask also fits the output.

    In local attention the windows and the last block of queries reach beyond the utterance. Keys and values are zero
    there, and quantized padding has no effect on the output, so it must not count as noise.
    """
    if not isinstance(module, QuantMatmul):
        return [None]
    query, key, value = inputs[:3]
    blocks, _, size, _ = query.shape
    number = torch.arange(blocks * size, device=query.device).view(blocks, 1, size, 1)
    return [number < frames, (key != 0).any(-1, keepdim=True), (value != 0).any(-1, keepdim=True)]


def _quantized_inputs(module: nn.Module, inputs: Arguments) -> Arguments | None:
    """Return the quantized inputs that a module computes with; None if its inputs stay in float."""
    if isinstance(module, QuantMatmul):
        query, key, value = inputs[:3]
        return module.query(query), module.key(key), module.value(value)
    if isinstance(module, QuantLinear) and module.input is not None:
        return (module.input(inputs[0]),)
    if isinstance(module, QuantConv1d) and module.input is not None:
        return (module.quantized_input(inputs[0]),)
    return None


def read_audio(manifest: Path | None, files: list[Path], seconds: float) -> list[Tensor]:
    """Return waveforms (samples,) of the files, or about `seconds` of utterances spread evenly over the manifest.

    Raises UserError if both or neither are given, or if a file cannot be read.
    """
    if (manifest is None) == (not files):
        raise UserError("analyse needs real audio: give either --manifest or audio files")
    if manifest is None:
        return [torch.from_numpy(load_audio(path)) for path in files]
    listed = Manifest.read(manifest)
    wanted = max(1, round(seconds * SAMPLE_RATE * len(listed) / sum(listed.samples)))
    step = max(1, len(listed) // wanted)
    return [torch.from_numpy(load_audio(listed.root / path)) for path in listed.paths[::step][:wanted]]
