"""Hidden states of an utterance <-> the bytes in a feature store."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from runners.features.settings import DTYPES

LARGEST_FP16 = torch.finfo(torch.float16).max


class Encoded(NamedTuple):
    """Hidden states of one utterance as bytes."""

    kind: int  # index into DTYPES
    shape: tuple[int, int, int]  # layers, frames, dim
    payload: Tensor  # uint8


def encode(states: Tensor, dtype: str) -> Encoded:
    """Return the fp32 hidden states (layers, frames, dim) as bytes.

    int8 has one scale for each layer and frame. Values that fp16 cannot represent are stored as fp32.
    """
    layers, frames, dim = states.shape
    kind = DTYPES.index(dtype)
    if dtype == "int8":
        scale = (states.abs().amax(2, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (states / scale).round().to(torch.int8)
        payload = torch.cat([scale.reshape(-1).view(torch.uint8), codes.reshape(-1).view(torch.uint8)])
    elif dtype == "fp16" and bool(states.abs().max() <= LARGEST_FP16):
        payload = states.half().reshape(-1).view(torch.uint8)
    else:
        kind = DTYPES.index("fp32")
        payload = states.reshape(-1).view(torch.uint8)
    return Encoded(kind, (layers, frames, dim), payload.contiguous())


def decode(encoded: Encoded) -> Tensor:
    """Return hidden states (layers, frames, dim) as fp16 or fp32, as a view of the payload unless it is int8."""
    kind, shape, payload = encoded
    if DTYPES[kind] == "fp16":
        return payload.view(torch.float16).view(shape)
    if DTYPES[kind] == "fp32":
        return payload.view(torch.float32).view(shape)
    layers, frames, _ = shape
    scales = payload[: 4 * layers * frames].view(torch.float32).view(layers, frames, 1)
    return payload[4 * layers * frames :].view(torch.int8).view(shape) * scales
