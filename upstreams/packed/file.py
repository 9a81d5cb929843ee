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
from upstreams.packed.contents import Layer
from upstreams.packed.head import Head, parse_head
from upstreams.packed.validation import check_header, fault_of, shown
from upstreams.quantization.spec import Bits

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F32": np.dtype("<f4")}
MAX_HEADER = 100_000_000  # bytes, the limit of safetensors
MAX_DIMENSIONS = 8
MAX_MESSAGE = 1000  # characters
MAX_DIGITS = 16  # of a number in JSON: sizes and products of sizes can then be printed

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PackedFile:
    """The contents of a packed file."""

    path: Path
    config: ModelConfig
    layers: dict[str, Layer]  # quantized layers and attention products by name
    tensors: FileTensors  # with those of the head
    provenance: dict[str, Any]
    head: Head | None = None


def write(
    path: Path,
    config: ModelConfig,
    layers: dict[str, Layer],
    tensors: Arrays,
    provenance: dict[str, Any],
    head: Head | None = None,
) -> None:
    """Write the tensors of a packed model, and of a head if there is one. They must be uint8 or float32."""
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file(dict(tensors), temporary, metadata=_metadata(config, layers, tensors, provenance, head))


def to_bytes(config: ModelConfig, layers: dict[str, Layer], tensors: Arrays, provenance: dict[str, Any]) -> bytes:
    """Return the file that `write` would write for a model without a head."""
    from safetensors.numpy import save

    return save(dict(tensors), metadata=_metadata(config, layers, tensors, provenance, None))


def _metadata(
    config: ModelConfig, layers: dict[str, Layer], tensors: Arrays, provenance: dict[str, Any], head: Head | None
) -> dict[str, str]:
    listed = {name: {"bits": str(layer.bits), "signed": layer.signed} for name, layer in layers.items()}
    metadata = {"format": FORMAT, "config": dataclasses.asdict(config), "layers": listed, "provenance": provenance}
    if head is not None:
        metadata["head"] = dataclasses.asdict(head)
    metadata["checksum"] = _checksum(tensors, metadata)
    return {PACKED: json.dumps(metadata)}


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
                header = parsed_json(file.read(length))
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
                raise UserError(
                    f"{path} is damaged: {shown(name)} begins at byte {begin} of the data instead of byte {end}"
                )
            end = stop
        if self._start + end != size:
            raise UserError(f"{path} is damaged: it has {size} bytes, but its header describes {self._start + end}")

    @staticmethod
    def _entry(
        name: str, dtype: str, shape: list[int], data_offsets: list[int]
    ) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
        kind = DTYPES.get(dtype)
        if kind is None:
            raise ValueError(f"{shown(name)} has type {shown(dtype)} instead of uint8 or float32")
        begin, end = data_offsets
        if not all(type(value) is int and value >= 0 for value in (*shape, begin, end)):
            raise ValueError(f"{shown(name)} has a shape or offsets that are not whole numbers >= 0")
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{shown(name)} has {len(shape)} dimensions, but at most {MAX_DIMENSIONS} are possible")
        if math.prod(shape) * kind.itemsize != end - begin:
            raise ValueError(f"{shown(name)} of shape {tuple(shape)} does not fill bytes {begin} to {end}")
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


def is_packed(path: Path) -> bool:
    """True if the header marks the file as packed; False if it cannot be read."""
    # FileTensors would refuse a checkpoint, whose tensors have more types: only the metadata is read.
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return PACKED in json.loads(file.read(min(length, MAX_HEADER))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def parsed_json(text: str | bytes) -> Any:
    """Return the contents of a JSON text. Raises ValueError, TypeError or RecursionError if it is none."""
    return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, but at most {MAX_DIGITS} are possible")
    return int(digits)


def read(path: Path) -> PackedFile:
    """Return the contents of a packed file.

    Raises UserError if the file is missing, truncated, altered or not a packed file, and if its tensors or layers are
    not those of its configuration or hold values that a model cannot have.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors file written by `superbit pack`")
    tensors = FileTensors(path)
    if PACKED not in tensors.metadata:
        raise UserError(f"{path} is not a packed file: make one from a quantized checkpoint with `superbit pack`")
    try:
        metadata = parsed_json(tensors.metadata[PACKED])
        version, checksum = metadata["format"], metadata.pop("checksum")
        if type(version) is not int or version != FORMAT:
            raise UserError(f"{path} has packed format {shown(version)}, but this version reads format {FORMAT}")
        config = from_dict(ModelConfig, metadata["config"], f"the configuration in {path}")
        layers = {name: _layer(name, **entry) for name, entry in metadata["layers"].items()}
        provenance = metadata["provenance"]
        if not isinstance(provenance, dict):
            raise TypeError("the provenance is not a mapping")
        head = parse_head(path, metadata["head"]) if "head" in metadata else None
        entries = check_header(path, config, layers, tensors, head)
        found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    except UserError as error:  # which may repeat a value of the file
        raise UserError(f"{str(error)[:MAX_MESSAGE]}...") if len(str(error)) > MAX_MESSAGE else error from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise UserError(f"{path} is damaged or not a packed file ({reason})") from error
    fault = None
    for name in sorted(tensors):
        tensor = tensors[name]
        fault = fault or fault_of(entries[name], tensor)
        found = _add_tensor(found, name, tensor)
    if checksum != found:
        raise UserError(f"{path} was altered after it was written: the checksum is wrong; pack the checkpoint again")
    if fault is not None:
        raise UserError(f"{path} is not valid: {fault}")
    return PackedFile(path, config, layers, tensors, provenance, head)


def _layer(name: str, bits: str, signed: bool) -> Layer:
    if type(bits) is not str or type(signed) is not bool:
        raise TypeError(f"the bit widths of {shown(name)} are not a text, or its sign is neither true nor false")
    return Layer(Bits.parse(bits), signed)


def _checksum(tensors: Arrays, metadata: dict[str, Any]) -> int:
    """Return the CRC-32 of the metadata and of all tensors with their names, types and shapes.

    A cryptographic digest would not detect accidents better, and its library takes megabytes of memory on a device.
    """
    checksum = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        checksum = _add_tensor(checksum, name, tensors[name])
    return checksum


def _add_tensor(checksum: int, name: str, tensor: NDArray[Any]) -> int:
    checksum = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), checksum)
    return zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data, checksum)
