"""A packed file: safetensors whose quantized weights are bits, with configuration and provenance. Imports no torch.

It is read here, tensor by tensor, so that a device never holds it whole in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.formats.metadata import PACKED
from upstreams.quantization.spec import Bits

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F32": np.dtype("<f4")}
LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """How a quantized layer is to be read: its bits, and whether its input's levels are on both sides of 0."""

    bits: Bits
    signed: bool


@dataclass(frozen=True)
class PackedFile:
    """What a packed file holds."""

    path: Path
    config: ModelConfig
    layers: dict[str, Layer]  # every quantized layer and attention product by its name
    tensors: StoredTensors | HeldTensors
    provenance: dict[str, Any]


def write(
    path: Path, config: ModelConfig, layers: dict[str, Layer], tensors: Arrays, provenance: dict[str, Any]
) -> None:
    """Write a packed model's tensors, all uint8 or float32."""
    listed = {name: {"bits": str(layer.bits), "signed": layer.signed} for name, layer in layers.items()}
    about = {"format": FORMAT, "config": dataclasses.asdict(config), "layers": listed, "provenance": provenance}
    about["checksum"] = _checksum(tensors, about)
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file(dict(tensors), temporary, metadata={PACKED: json.dumps(about)})


class StoredTensors(Mapping[str, NDArray[Any]]):
    """The tensors of a safetensors file, each read when it is asked for.

    Raises UserError when the file's header is not that of a whole file of uint8 and float32 tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                    raise ValueError(f"a header of {length} bytes in a file of {size}")
                header = json.loads(file.read(length))
            self.metadata = header.pop("__metadata__", {})
            if not isinstance(self.metadata, dict):
                raise TypeError("metadata that is no mapping")
            self._start = 8 + length
            self._entries = {name: self._entry(name, **entry) for name, entry in header.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or is no safetensors file ({error})") from error
        end = 0
        for name, (_, _, begin, stop) in sorted(self._entries.items(), key=lambda entry: entry[1][2:]):
            if begin != end:
                raise UserError(f"{path} is damaged: {name} begins at byte {begin} of the data, but must at {end}")
            end = stop
        if self._start + end != size:
            raise UserError(f"{path} is damaged: it has {size} bytes, but its header says {self._start + end}")

    @staticmethod
    def _entry(
        name: str, dtype: str, shape: list[int], data_offsets: list[int]
    ) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        kind = DTYPES.get(dtype)
        if kind is None:
            raise ValueError(f"{name} is of type {dtype}, not uint8 or float32")
        begin, end = data_offsets
        if not all(type(value) is int and value >= 0 for value in (*shape, begin, end)):
            raise ValueError(f"{name} has a shape or offsets that are no whole numbers from 0 up")
        if math.prod(shape) * kind.itemsize != end - begin:
            raise ValueError(f"{name} of shape {tuple(shape)} does not fill bytes {begin} to {end}")
        return kind, tuple(shape), begin, end

    def __getitem__(self, name: str) -> NDArray[Any]:
        dtype, shape, begin, end = self._entries[name]
        with self.path.open("rb") as file:
            file.seek(self._start + begin)
            data = np.fromfile(file, dtype, (end - begin) // dtype.itemsize)
        return data.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not read."""
        return self._entries[name][1]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a tensor, which is not read."""
        return self._entries[name][0]


class HeldTensors(dict[str, NDArray[Any]]):
    """Tensors that are in memory already."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a tensor."""
        return self[name].dtype


def is_packed(path: Path) -> bool:
    """Whether a file says that it is a packed one; of one that cannot be read it is not said."""
    # A checkpoint's tensors are of more types than a packed file's: only the header's beginning tells them apart.
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return PACKED in json.loads(file.read(min(length, LONGEST_HEADER))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def read(path: Path) -> PackedFile:
    """A packed file's contents.

    Raises UserError when the file is missing, truncated, altered, holds what is no number, or is no packed file. That
    its tensors are those of its configuration is for the caller to check, who takes them one by one.
    """
    if not path.is_file():
        raise UserError(f"no packed file at {path}: a .safetensors file that `superbit pack` wrote is expected")
    tensors = StoredTensors(path)
    if PACKED not in tensors.metadata:
        raise UserError(f"{path} is no packed file: `superbit pack` makes one of a quantized checkpoint")
    try:
        about = json.loads(tensors.metadata[PACKED])
        config = from_dict(ModelConfig, about["config"], f"the configuration in {path}")
        layers = {k: Layer(Bits.parse(v["bits"]), bool(v["signed"])) for k, v in about["layers"].items()}
        provenance, checksum = about["provenance"], about.pop("checksum")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or is no packed file ({type(error).__name__}: {error})") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{path} has packed format {about.get('format')}, but this version reads {FORMAT}")
    for name, layer in layers.items():
        if layer.bits.weight == 32:
            raise UserError(f"{name} in {path} is said to have {layer.bits}, but only quantized weights are packed")
    if checksum != _checksum(tensors, about):
        raise UserError(f"{path} was altered after it was written: its contents do not fit its checksum; pack it anew")
    return PackedFile(path, config, layers, tensors, provenance)


def _checksum(tensors: Arrays, about: dict[str, Any]) -> int:
    """CRC-32 of all tensors, their names, types and shapes, and of what is said about them.

    A cryptographic digest would protect no better against accidents, and its library takes megabytes on a device.
    """
    checksum = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def finite(path: Path, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
    """The tensor itself; raises UserError when it holds NaN or infinite values."""
    if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
        raise UserError(f"{name} in {path} holds NaN or infinite values")
    return tensor


def check_codes(name: str, codes: NDArray[np.uint8], columns: int, bits: int) -> None:
    """Raises UserError when bits are set behind a row's last weight, which would be counted as weights."""
    spare = codes.shape[1] * 8 - columns * bits
    if codes.size and spare and (codes[:, -1] >> (8 - spare)).any():
        raise UserError(f"{name} has bits set behind the last of its {columns} weights a row: the file is damaged")


def code_bytes(columns: int, bits: int) -> int:
    """Bytes of one row of that many weights."""
    return -(-columns * bits // 8)
