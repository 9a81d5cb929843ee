"""Hidden states of an utterance <-> the bytes in a feature store."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from runners.features.settings import DTYPES

LARGEST_FP16 = torch.finfo(torch.float16).max
# A layer with a smaller peak is scaled before it becomes fp16, which has no full precision below 6e-5 and ends at 6e-8.
SMALLEST_PEAK = 2.0**-4
KINDS = (*DTYPES, "scaled fp16")


class Encoded(NamedTuple):
    """Hidden states of one utterance as bytes."""

    kind: int  # index into KINDS
    shape: tuple[int, int, int]  # layers, frames, dim
    payload: Tensor  # uint8


def encode(states: Tensor, dtype: str) -> Encoded:
    """Return the fp32 hidden states (layers, frames, dim) as bytes.

    int8 has one scale for each layer and frame. fp16 has one scale for each layer if a layer's values are small.
    Values that fp16 cannot represent are stored as fp32.
    """
    layers, frames, dim = states.shape
    kind = dtype
    if dtype == "int8":
        scale = (states.abs().amax(2, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        payload = _bytes(scale, (states / scale).round().to(torch.int8))
    elif dtype == "fp16" and bool(states.abs().max() <= LARGEST_FP16):
        peaks = states.abs().amax((1, 2), keepdim=True)
        if bool((peaks >= SMALLEST_PEAK).all()):
            payload = _bytes(states.half())
        else:
            kind = "scaled fp16"
            # Powers of two: multiplying by them rounds nothing. The peak becomes 1 to 2.
            exponents = torch.where((peaks > 0) & (peaks < SMALLEST_PEAK), torch.frexp(peaks).exponent - 1, 0)
            scale = torch.exp2(exponents.float().clamp_min(-126))
            payload = _bytes(scale, (states / scale).half())
    else:
        kind = "fp32"
        payload = _bytes(states)
    return Encoded(KINDS.index(kind), (layers, frames, dim), payload)


def decode(encoded: Encoded) -> Tensor:
    """Return hidden states (layers, frames, dim) as fp16 or fp32, as a view of the payload unless it has scales."""
    kind, shape, payload = encoded
    layers, frames, _ = shape
    if KINDS[kind] == "fp16":
        return payload.view(torch.float16).view(shape)
    if KINDS[kind] == "fp32":
        return payload.view(torch.float32).view(shape)
    if KINDS[kind] == "int8":
        scales = payload[: 4 * layers * frames].view(torch.float32).view(layers, frames, 1)
        return payload[4 * layers * frames :].view(torch.int8).view(shape) * scales
    scales = payload[: 4 * layers].view(torch.float32).view(layers, 1, 1)
    return payload[4 * layers :].view(torch.float16).view(shape) * scales


def _bytes(*tensors: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]).contiguous()
