"""Tensors of files: compared with a model's before anything is allocated, and given to a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from upstreams.frontend import LogMel


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return the first way in which the tensors of a file are not those of a model, or None if they fit.

    Only names, types and shapes are compared, so that both may be on the meta device.
    """
    for name, tensor in expected.items():
        if name not in found:
            return f"{name} is missing"
        other = found[name]
        if other.shape != tensor.shape:
            return f"{name} has shape {_shape(other)} instead of {_shape(tensor)}"
        if other.layout != torch.strided or other.is_quantized or other.is_meta:
            return f"{name} is not a plain tensor"
        if other.dtype != tensor.dtype and not (other.is_floating_point() and tensor.is_floating_point()):
            return f"{name} has type {other.dtype} instead of {tensor.dtype}"
    extra = next((name for name in found if name not in expected), None)
    return None if extra is None else f"{extra} does not belong to it"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, or None."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make the tensors, which fit, the parameters and buffers of a module that may be on the meta device.

    They are moved from the file's memory map to memory of their own: a change of the file must not change the model,
    and products of aligned memory round alike in every process.
    """
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    own = {
        name: tensor.to(types[name], copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    module.load_state_dict(own, assign=True)
    for part in module.modules():
        if isinstance(part, LogMel):
            part.set_constants()
