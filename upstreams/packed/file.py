"""The packed file: safetensors whose quantized weights are bits, with configuration and provenance. Imports no torch.

Tensors are read one at a time, so that a device never holds the whole file in memory.
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
MAX_HEADER = 100_000_000  # bytes, the limit of safetensors

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """How to read a quantized layer: its bit widths, and whether its input has negative levels."""

    bits: Bits
    signed: bool


@dataclass(frozen=True)
class PackedFile:
    """The contents of a packed file."""

    path: Path
    config: ModelConfig
    layers: dict[str, Layer]  # quantized layers and attention products by name
    tensors: FileTensors | MemoryTensors
    provenance: dict[str, Any]


def write(
    path: Path, config: ModelConfig, layers: dict[str, Layer], tensors: Arrays, provenance: dict[str, Any]
) -> None:
    """Write a packed model's tensors, which must be uint8 or float32."""
    listed = {name: {"bits": str(layer.bits), "signed": layer.signed} for name, layer in layers.items()}
    metadata = {"format": FORMAT, "config": dataclasses.asdict(config), "layers": listed, "provenance": provenance}
    metadata["checksum"] = _checksum(tensors, metadata)
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file(dict(tensors), temporary, metadata={PACKED: json.dumps(metadata)})


class FileTensors(Mapping[str, NDArray[Any]]):
    """The tensors of a safetensors file. Each is read when it is requested.

    Raises UserError if the header is invalid, if a tensor is neither uint8 nor float32, or if the file is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(size - 8, MAX_HEADER):
                    raise ValueError(f"header of {length} bytes in a file of {size} bytes")
                header = json.loads(file.read(length))
            self.metadata = header.pop("__metadata__", {})
            if not isinstance(self.metadata, dict):
                raise TypeError("the metadata is not a mapping")
            self._start = 8 + length
            self._entries = {name: self._entry(name, **entry) for name, entry in header.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or not a safetensors file ({error})") from error
        end = 0
        for name, (_, _, begin, stop) in sorted(self._entries.items(), key=lambda entry: entry[1][2:]):
            if begin != end:
                raise UserError(f"{path} is damaged: {name} begins at byte {begin} of the data instead of byte {end}")
            end = stop
        if self._start + end != size:
            raise UserError(f"{path} is damaged: it has {size} bytes, but its header describes {self._start + end}")

    @staticmethod
    def _entry(
        name: str, dtype: str, shape: list[int], data_offsets: list[int]
    ) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        kind = DTYPES.get(dtype)
        if kind is None:
            raise ValueError(f"{name} has type {dtype} instead of uint8 or float32")
        begin, end = data_offsets
        if not all(type(value) is int and value >= 0 for value in (*shape, begin, end)):
            raise ValueError(f"{name} has a shape or offsets that are not whole numbers >= 0")
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
        """Return the shape of a tensor without reading it."""
        return self._entries[name][1]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of a tensor without reading it."""
        return self._entries[name][0]


class MemoryTensors(dict[str, NDArray[Any]]):
    """Tensors in memory, with the interface of FileTensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of a tensor."""
        return self[name].dtype


def is_packed(path: Path) -> bool:
    """True if the header marks the file as packed; False if it cannot be read."""
    # FileTensors would refuse a checkpoint, whose tensors have more types: only the metadata is read.
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return PACKED in json.loads(file.read(min(length, MAX_HEADER))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def read(path: Path) -> PackedFile:
    """Return the contents of a packed file.

    Raises UserError if the file is missing, truncated, altered or not a packed file. The caller checks that the tensors
    fit the configuration and are finite (TensorReader, convert.load).
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors file written by `superbit pack`")
    tensors = FileTensors(path)
    if PACKED not in tensors.metadata:
        raise UserError(f"{path} is not a packed file: make one from a quantized checkpoint with `superbit pack`")
    try:
        metadata = json.loads(tensors.metadata[PACKED])
        config = from_dict(ModelConfig, metadata["config"], f"the configuration in {path}")
        layers = {k: Layer(Bits.parse(v["bits"]), bool(v["signed"])) for k, v in metadata["layers"].items()}
        provenance, checksum = metadata["provenance"], metadata.pop("checksum")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or not a packed file ({type(error).__name__}: {error})") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} has packed format {metadata.get('format')}, but this version reads format {FORMAT}")
    for name, layer in layers.items():
        if layer.bits.weight == 32:
            raise UserError(
                f"{name} in {path} has bit widths {layer.bits}, but a packed layer must have quantized weights"
            )
    if checksum != _checksum(tensors, metadata):
        raise UserError(f"{path} was altered after it was written: the checksum is wrong; pack the checkpoint again")
    return PackedFile(path, config, layers, tensors, provenance)


def _checksum(tensors: Arrays, metadata: dict[str, Any]) -> int:
    """Return the CRC-32 of the metadata and of all tensors with their names, types and shapes.

    A cryptographic digest would not detect accidents better, and its library takes megabytes of memory on a device.
    """
    checksum = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data, checksum)
    return checksum


def finite(path: Path, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
    """Return the tensor. Raises UserError if it holds NaN or infinite values."""
    if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
        raise UserError(f"{name} in {path} holds NaN or infinite values")
    return tensor


def check_codes(name: str, codes: NDArray[np.uint8], columns: int, bits: int) -> None:
    """Raise UserError if bits after the last weight of a row are set: the kernel would count them as weights."""
    spare = codes.shape[1] * 8 - columns * bits
    if codes.size and spare and (codes[:, -1] >> (8 - spare)).any():
        raise UserError(f"{name} has bits set after the last of the {columns} weights of a row: the file is damaged")


def code_bytes(columns: int, bits: int) -> int:
    """Return the number of bytes of a row of `columns` weights."""
    return -(-columns * bits // 8)
