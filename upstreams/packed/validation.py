"""The validation of packed files, which every reader of one goes through. Imports no torch.

Names, types and shapes are compared before a tensor is read, so that a file costs no more than its own size, whatever
its configuration describes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.packed.contents import Entry, Layer, Values, contents
from upstreams.packed.head import Head

MAX_OVERRIDES, MAX_PATTERN = 1000, 200  # each module's name is compared with each override's pattern
MAX_SHOWN = 100  # characters of a name in a message


class Header(Protocol):
    """The names, types and shapes of tensors."""

    def __iter__(self) -> Any:
        """Iterate over the names."""

    def __contains__(self, name: object) -> bool:
        """True if there is a tensor of that name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of a tensor."""


def shown(name: object) -> str:
    """Return a name from a file as a message may show it: escaped and short."""
    text = ascii(name)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def check_header(
    path: Path, config: ModelConfig, layers: Mapping[str, Layer], tensors: Header, head: Head | None
) -> dict[str, Entry]:
    """Return what each tensor of a file must hold. Raises UserError unless the file has what its configuration has."""
    overrides = config.quantization.overrides
    if len(overrides) > MAX_OVERRIDES or any(len(pattern) > MAX_PATTERN for pattern in overrides):
        raise UserError(f"{path} has over {MAX_OVERRIDES} overrides, or one of over {MAX_PATTERN} characters")
    entries: dict[str, Entry] = {}
    expected_layers: set[str] = set()
    try:
        for item in itertools.chain(contents(config), head.entries(config) if head else ()):
            if isinstance(item, Entry):
                _check_entry(item, tensors)
                entries[item.name] = item
            else:
                name, layer = item
                expected_layers.add(name)
                if layers.get(name) != layer:
                    raise UserError(f"{name} is {_described(layers.get(name))}, but must be {_described(layer)}")
        for name in (*tensors, *layers):
            if name not in entries and name not in expected_layers:
                raise UserError(f"there is {shown(name)}, which it does not have")
    except UserError as error:
        raise UserError(f"{path} does not fit its configuration: {error}") from error
    return entries


def _check_entry(entry: Entry, tensors: Header) -> None:
    if entry.name not in tensors:
        raise UserError(f"{entry.name} is missing")
    dtype = np.dtype(np.uint8 if entry.values is Values.CODES else np.float32)
    found = tensors.dtype(entry.name), tensors.shape(entry.name)
    if found != (dtype, entry.shape):
        raise UserError(f"{entry.name} is {found[0]} {found[1]}, but must be {dtype} {entry.shape}")


def _described(layer: Layer | None) -> str:
    if layer is None:
        return "not quantized"
    return f"{layer.bits} with {'signed' if layer.signed else 'non-negative'} input"


def fault_of(entry: Entry, tensor: NDArray[Any]) -> str | None:
    """Return what is wrong with the values of a tensor; None if they are valid."""
    if entry.values is Values.CODES:
        if entry.spare and tensor.size and (tensor[:, -1] >> (8 - entry.spare)).any():
            return f"{entry.name} has bits set after the last weight of a row"
        return None
    if not np.isfinite(tensor).all():
        return f"{entry.name} holds NaN or infinite values"
    lowest = tensor.min(initial=np.inf)
    if (entry.values is Values.POSITIVE and lowest <= 0) or (entry.values is Values.NOT_NEGATIVE and lowest < 0):
        return f"{entry.name} holds {lowest}, but must {entry.values.value}"
    return None
