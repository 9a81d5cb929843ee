"""File format of the feature store: shard files that consist of records.

A record is a header of fixed size, with checksums of itself and of the payload, and the payload. A record counts only
if it is whole. A writer that is killed leaves at most an incomplete record at the end, which nobody reads, so readers
need no lock. Shards are read through memory maps: the system's page cache is the cache.
"""

from __future__ import annotations

import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

SUFFIX = ".shard"
MAGIC = b"SBFS0001"
# magic, key, kind, three dimensions, bytes of the payload, CRC-32 of the payload
HEADER = struct.Struct("<8s32sBxxxIIIQI")
HEADER_BYTES = 128  # ends with the CRC-32 of the other header bytes
ALIGNMENT = 64


@dataclass(frozen=True)
class Record:
    """A whole record: its place in a shard, and how to read it."""

    shard: Shard
    kind: int
    shape: tuple[int, int, int]
    offset: int  # of the payload
    size: int  # of the payload in bytes
    crc: int


@dataclass(eq=False)
class Shard:
    """A shard file and its memory map."""

    path: Path
    scanned: int = 0  # bytes whose records are known
    damaged: bool = False
    touched: float = 0.0  # when this process last marked the shard as used; 0: never
    mapped: Tensor | None = field(default=None, repr=False)
    mapping: mmap.mmap | None = field(default=None, repr=False)

    def payload(self, offset: int, size: int) -> Tensor | None:
        """Return the bytes of a payload (uint8, a view of the file); None if the file has become shorter."""
        end = offset + size
        if self.mapping is None or self.mapping.size() < end or len(self.mapping) < end:
            try:
                with self.path.open("rb") as file:
                    length = os.fstat(file.fileno()).st_size
                    if length < end:
                        return None
                    self.mapping = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                return None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self.mapped = torch.frombuffer(self.mapping, dtype=torch.uint8)
        assert self.mapped is not None
        return self.mapped[offset:end]

    def scan(self, size: int) -> Iterator[tuple[bytes, Record]]:
        """Yield the keys and records between `scanned` and `size`, and advance `scanned`.

        Stops at the first header that is not valid, and sets `damaged`.
        """
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            while self.scanned + HEADER_BYTES <= size:
                block = os.pread(file, HEADER_BYTES, self.scanned)
                if len(block) < HEADER_BYTES:
                    return
                if zlib.crc32(block[:-4]) != int.from_bytes(block[-4:], "little") or block[:8] != MAGIC:
                    self.damaged = True
                    return
                _, key, kind, a, b, c, payload, crc = HEADER.unpack_from(block)
                start = self.scanned + HEADER_BYTES
                if start + payload > size:
                    return  # still being written, or its writer died
                self.scanned = start + aligned(payload)
                yield key, Record(self, kind, (a, b, c), start, payload, crc)
        finally:
            os.close(file)


def as_record(key: bytes, kind: int, shape: tuple[int, int, int], payload: memoryview) -> tuple[bytes, int]:
    """Return a record's bytes, and the CRC-32 of its payload."""
    crc = zlib.crc32(payload)
    header = HEADER.pack(MAGIC, key, kind, *shape, len(payload), crc).ljust(HEADER_BYTES - 4, b"\0")
    header += zlib.crc32(header).to_bytes(4, "little")
    return b"".join([header, payload, bytes(aligned(len(payload)) - len(payload))]), crc


def aligned(size: int) -> int:
    """Return the size rounded up to the alignment of records."""
    return -(-size // ALIGNMENT) * ALIGNMENT
