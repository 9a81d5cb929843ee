"""Pack quantized models, and write and load packed files.

Only `packed_module` reads the modules of upstreams/quantization.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder, without_values
from upstreams.packed import file
from upstreams.packed.head import PREFIX, TrainedHead
from upstreams.packed.model import PackedAudioEncoder, layer_table, stored_tensors
from upstreams.packed.modules import PackedConv1d, PackedLayer, PackedLinear, PackedMatmul, pack_codes
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import ActivationQuantizer, WeightBinarizer, WeightQuantizer


@torch.no_grad()
def packed_module(module: QuantLinear | QuantConv1d | QuantMatmul) -> nn.Module:
    """Return the packed twin of a quantized module; on the meta device without values."""
    if isinstance(module, QuantMatmul):
        product = PackedMatmul(module.bits.activation)
        for name in ("query", "key", "value", "probability"):
            setattr(product, name, getattr(module, name).scale.detach().clone())
        return product
    weight, quantizer = module.weight.detach(), module.weight_quantizer
    if isinstance(quantizer, WeightBinarizer):
        whole = quantizer.positive(weight) * 2 - 1
        scale = weight.abs().flatten(1).mean(1) if quantizer.per_channel else weight.abs().mean()
    else:
        assert isinstance(quantizer, WeightQuantizer)
        scale = quantizer.scale.detach()
        whole = quantizer.whole_numbers(weight)
        scale = scale.flatten() if scale.ndim else scale
    signed = module.input is None or module.input.signed
    common = (module.bits, scale.ndim > 0, signed)
    packed: PackedLayer
    if isinstance(module, QuantLinear):
        packed = PackedLinear(module.in_features, module.out_features, *common)
    else:
        packed = PackedConv1d(weight.shape, module.stride, module.padding, module.groups, *common)  # type: ignore[arg-type]
    packed.codes = pack_codes(whole.flatten(1), module.bits.weight)
    packed.weight_scale = scale.clone()
    packed.bias = (
        torch.zeros(len(weight), device=weight.device) if module.bias is None else module.bias.detach().clone()
    )
    if isinstance(module.input, ActivationQuantizer):
        packed.alpha = module.input.scale.detach().clone()
        packed.beta = None if module.input.beta is None else module.input.beta.detach().clone()
    return packed


def pack(model: AudioEncoder) -> PackedAudioEncoder:
    """Return the packed twin of a quantized model, in eval mode.

    It takes modules from `model`, which must not be used afterwards. Raises UserError if nothing is quantized, and on
    quantized modules with float weights.
    """
    found = False
    for name, module in list(model.named_modules()):
        if isinstance(module, (QuantLinear, QuantConv1d)):
            if module.bits.weight == 32:
                raise UserError(
                    f"{model.config.name} has {module.bits} at {name}, but only quantized weights can be packed"
                )
        elif not isinstance(module, QuantMatmul):
            continue
        _replace(model, name, packed_module(module))
        found = True
    if not found:
        raise UserError(f"{model.config.name} is not quantized ({model.config.bits}): run `superbit quantize` first")
    return PackedAudioEncoder(model).eval()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def save(path: Path, model: AudioEncoder, provenance: dict[str, Any]) -> None:
    """Write a packed model to a file."""
    file.write(path, model.config, layer_table(model), _arrays(model), provenance)


def _arrays(model: AudioEncoder) -> dict[str, NDArray[Any]]:
    return {name: t.detach().cpu().contiguous().numpy() for name, t in stored_tensors(model).items()}


def pack_checkpoint(path: Path, out: Path, head: TrainedHead | None = None) -> None:
    """Pack a quantized checkpoint into the file `out`, with a trained head if there is one.

    With a head, the checkpoint may already be packed; a head that it holds is replaced. Raises UserError if the
    checkpoint cannot be read or is not quantized, and if the head does not fit it.
    """
    checkpoint.protect(out)
    if head is None:
        save(out, *_packed(path))
        return
    if file.is_packed(path):
        packed = file.read(path)
        config, layers, provenance = packed.config, packed.layers, packed.provenance
        tensors = {name: packed.tensors[name] for name in packed.tensors if not name.startswith(PREFIX)}
    else:
        model, provenance = _packed(path)
        config, layers, tensors = model.config, layer_table(model), _arrays(model)
    head.check_fits(config)
    file.write(out, config, layers, tensors | head.tensors, {**provenance, "head": head.provenance}, head.head)


def _packed(path: Path) -> tuple[PackedAudioEncoder, dict[str, Any]]:
    _, _, provenance = checkpoint.read(path)
    return pack(checkpoint.load(path)), {**provenance, "packed_from": sha256(path)}


def build(config: ModelConfig) -> PackedAudioEncoder:
    """Return the packed model of a configuration on the meta device: shapes without values."""
    with without_values():
        return pack(checkpoint.build(config))


def load(path: Path) -> AudioEncoder:
    """Return the model of a packed file, without a head, or of any other checkpoint, in eval mode.

    Raises UserError if the file cannot be read or its tensors do not fit its configuration.
    """
    if not file.is_packed(path):
        return checkpoint.load(path)
    packed = file.read(path)
    model = build(packed.config)
    for name, array in packed.tensors.items():
        if name.startswith(PREFIX):
            continue
        parent, _, child = name.rpartition(".")
        owner, tensor = model.get_submodule(parent), torch.from_numpy(array)
        if child in owner._parameters:
            owner._parameters[child] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[child] = tensor
    for module in model.modules():  # a packed file has no batch counters, and a tensor without values cannot be moved
        if isinstance(module, nn.BatchNorm1d):
            module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return model.eval()
