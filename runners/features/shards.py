"""Records on disk that one process appends and any number of processes read: the feature store's files.

Every process appends to a shard file of its own. A record is a header of fixed size, with checksums of itself and of
what follows, and a payload; it counts only when it is whole. So a writer that is killed leaves at most a tail that
nobody reads, and readers need no lock. Shards are read through memory maps: the system's page cache is the memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import time
import uuid
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

SUFFIX = ".shard"
MAGIC = b"SBFS0001"
# magic, key, kind, three dimensions, bytes of the payload, its crc32
HEADER = struct.Struct("<8s32sBxxxIIIQI")
HEADER_BYTES = 128  # with the header's own crc32 as its last four bytes
ALIGNMENT = 64
LARGEST_SHARD = 1 << 30
IN_USE_SECONDS = 120.0  # a shard that was read or written this lately is somebody's


@dataclass(frozen=True)
class Record:
    """Where a whole record's payload lies, and how to read it."""

    shard: _Shard
    kind: int
    shape: tuple[int, int, int]
    offset: int
    size: int
    crc: int


@dataclass(eq=False)
class _Shard:
    """One file: how far it has been read, and its memory map."""

    path: Path
    scanned: int = 0
    damaged: bool = False
    touched: float = 0.0
    mapped: Tensor | None = field(default=None, repr=False)
    mapping: mmap.mmap | None = field(default=None, repr=False)

    def payload(self, offset: int, size: int) -> Tensor | None:
        """The bytes of a payload (uint8, a view of the file); None when the file has become shorter."""
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


class Shards:
    """The records of one folder `root/space`, bounded together with those of every other folder of `root`.

    `max_bytes` bounds all shards below `root`. When they reach it, whole shards go, the ones longest unused first, but
    none that this process has used or that any process used within the last two minutes: what cannot be made room for
    is not kept. A full disk likewise ends the keeping, not the run.
    """

    def __init__(self, root: Path, space: str, max_bytes: int) -> None:
        self.root = root
        self.folder = root / space
        self.max_bytes = max_bytes
        self.shard_bytes = min(LARGEST_SHARD, max(max_bytes // 16, 1 << 20))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, _Shard] = {}
        self._records: dict[bytes, list[Record]] = defaultdict(list)
        self._checked: set[tuple[str, int]] = set()
        self._own: _Shard | None = None
        self._unwritable = False
        self._allowance = 0  # bytes that may be appended before the folders are looked through again
        self._file: int | None = None
        self._locks = os.open(self.folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        self._said: set[str] = set()
        self.refresh()

    def close(self) -> None:
        """Let go of the files; what was appended stays."""
        for descriptor in (self._file, self._locks):
            if descriptor is not None:
                os.close(descriptor)
        self._file = None

    # ---- reading ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Learn of the records that other processes have appended, and forget shards that are gone."""
        sizes = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    sizes[entry.name] = entry.stat().st_size
        for name, size in sizes.items():
            shard = self._shards.setdefault(name, _Shard(self.folder / name))
            if shard is not self._own and not shard.damaged and size > shard.scanned:
                self._scan(shard, size)
        for name in self._shards.keys() - sizes.keys():
            # A record that was already read stays readable: the map outlives the file's name.
            if self._shards[name].mapping is None:
                del self._shards[name]

    def _scan(self, shard: _Shard, size: int) -> None:
        try:
            file = os.open(shard.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            while shard.scanned + HEADER_BYTES <= size:
                block = os.pread(file, HEADER_BYTES, shard.scanned)
                if len(block) < HEADER_BYTES:
                    return
                if zlib.crc32(block[:-4]) != int.from_bytes(block[-4:], "little") or block[:8] != MAGIC:
                    shard.damaged = True
                    self._say(f"{shard.path} is damaged at byte {shard.scanned}: what follows is computed anew")
                    return
                _, key, kind, a, b, c, payload, crc = HEADER.unpack_from(block)
                start = shard.scanned + HEADER_BYTES
                if start + payload > size:
                    return  # being written, or its writer died
                self._records[key].append(Record(shard, kind, (a, b, c), start, payload, crc))
                shard.scanned = start + _aligned(payload)
        finally:
            os.close(file)

    def read(self, key: bytes) -> tuple[int, tuple[int, int, int], Tensor] | None:
        """Kind, shape and payload (uint8, a view of the file) of a record; None without a sound one."""
        records = self._records.get(key, [])
        while records:
            record = records[-1]
            payload = record.shard.payload(record.offset, record.size)
            place = (record.shard.path.name, record.offset)
            if payload is not None and place not in self._checked and zlib.crc32(payload.numpy().data) != record.crc:
                self._say(f"{record.shard.path} is damaged at byte {record.offset}: that record is computed anew")
                payload = None
            if payload is not None:
                self._checked.add(place)
                self._touch(record.shard)
                return record.kind, record.shape, payload
            records.pop()
        return None

    def _touch(self, shard: _Shard) -> None:
        """Mark the shard as used, now and then: its time of change orders what goes first."""
        now = time.time()
        if now - shard.touched > IN_USE_SECONDS / 2:
            shard.touched = now
            with contextlib.suppress(OSError):
                os.utime(shard.path)

    # ---- writing ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, keys: Iterable[bytes]) -> Iterator[set[bytes]]:
        """The keys that no other process is computing; they are this process's until the block ends, or it dies."""
        mine = set()
        try:
            for key in keys:
                try:
                    fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._say(f"{self.folder} is on a file system without locks ({error.strerror})")
                mine.add(key)
            yield mine
        finally:
            for key in mine:
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _place(key))

    def wait_for(self, key: bytes) -> None:
        """Return when the process that has claimed the key is done with it, or dead. Hold no claims meanwhile."""
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, _place(key))
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _place(key))

    def append(self, key: bytes, kind: int, shape: tuple[int, int, int], payload: memoryview) -> bool:
        """Write a record at the end of this process's shard; False, after a line on why, where it is not kept."""
        size = HEADER_BYTES + _aligned(len(payload))
        crc = zlib.crc32(payload)
        header = HEADER.pack(MAGIC, key, kind, *shape, len(payload), crc).ljust(HEADER_BYTES - 4, b"\0")
        header += zlib.crc32(header).to_bytes(4, "little")
        if self._unwritable:
            return False
        if not self._make_room(size):
            self._say(f"the feature store has reached its {self.max_bytes / 2**30:.3g} GB: the rest is not kept")
            return False
        try:
            if self._own is None or self._own.scanned + size > self.shard_bytes or self._removed():
                self._start_shard()
            assert self._own is not None and self._file is not None
            record = memoryview(b"".join([header, payload, bytes(size - HEADER_BYTES - len(payload))]))
            while record:  # a disk that fills up takes a part first
                record = record[os.write(self._file, record) :]
        except OSError as error:
            self._say(
                f"the feature store {self.root} cannot be written ({error.strerror or error}): nothing more is kept"
            )
            self._unwritable = True
            if self._own is not None and self._file is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._own.scanned)
            return False
        start = self._own.scanned + HEADER_BYTES
        self._records[key].append(Record(self._own, kind, shape, start, len(payload), crc))
        self._own.scanned += size
        self._allowance -= size
        return True

    def _removed(self) -> bool:
        """Whether another process has made room by removing this one's shard."""
        return self._file is not None and os.fstat(self._file).st_nlink == 0

    def _start_shard(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self._own = self._shards[name] = _Shard(self.folder / name, touched=time.time())
        self._file = os.open(self._own.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def _make_room(self, size: int) -> bool:
        """Whether that many bytes fit, once shards that nobody uses are removed, the longest unused first."""
        if size <= self._allowance:
            return True
        found = []
        for path in self.root.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat(), path))
        total = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda entry: entry[0].st_mtime):
            if total + size <= self.max_bytes:
                break
            known = self._shards.get(path.name)
            used_here = known is not None and known.touched > 0
            if not used_here and time.time() - status.st_mtime > IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                total -= status.st_size
        # A part of what is left: other processes append as well.
        fits = total + size <= self.max_bytes
        self._allowance = max(size, (self.max_bytes - total) // 16) if fits else 0
        return fits

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            print(f"[superbit] {message}", flush=True)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _place(key: bytes) -> int:
    """A key's byte in the file of claims, which stays empty."""
    return int.from_bytes(key[:7], "little")
