"""Records of a feature store on disk: each process appends to its own shard, and any number of processes read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from runners.features.records import HEADER_BYTES, SUFFIX, Record, Shard, aligned, as_record

LARGEST_SHARD = 1 << 30
IN_USE_SECONDS = 120.0  # a shard that was read or written more recently is in use


class Shards:
    """The records in the folder `root/space`.

    max_bytes: limit for the shards of all folders in `root` together. At the limit, whole shards are removed, the least
    recently used first, except those that this process has used or that any process has used within two minutes. If
    that makes too little room, the record is not stored. A full disk also only stops the storing, not the run.
    """

    def __init__(self, root: Path, space: str, max_bytes: int) -> None:
        self.root = root
        self.folder = root / space
        self.max_bytes = max_bytes
        self.shard_bytes = min(LARGEST_SHARD, max(max_bytes // 16, 1 << 20))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shards: dict[str, Shard] = {}
        self._records: dict[bytes, list[Record]] = defaultdict(list)
        self._checked: set[tuple[str, int]] = set()  # payloads whose checksum was right
        self._own: Shard | None = None
        self._file: int | None = None  # descriptor of the own shard
        self._unwritable = False
        self._allowance = 0  # bytes that may be appended before the sizes of all shards are summed again
        self._claims = os.open(self.folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        self._printed: set[str] = set()
        self.refresh()

    def close(self) -> None:
        """Close the files. Appended records stay on disk."""
        for descriptor in (self._file, self._claims):
            if descriptor is not None:
                os.close(descriptor)
        self._file = None

    # ---- reading ---------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Find the records that other processes have appended, and forget shards that were removed."""
        sizes = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    sizes[entry.name] = entry.stat().st_size
        for name, size in sizes.items():
            shard = self._shards.setdefault(name, Shard(self.folder / name))
            if shard is not self._own and not shard.damaged and size > shard.scanned:
                for key, record in shard.scan(size):
                    self._records[key].append(record)
                if shard.damaged:
                    self._print(f"{shard.path} is damaged at byte {shard.scanned}: later records are computed again")
        for name in self._shards.keys() - sizes.keys():
            # Records that were read already stay readable: the memory map outlives the file's name.
            if self._shards[name].mapping is None:
                del self._shards[name]

    def read(self, key: bytes) -> tuple[int, tuple[int, int, int], Tensor] | None:
        """Return kind, shape and payload (uint8, a view of the file) of a record; None if there is no valid one."""
        records = self._records.get(key, [])
        while records:
            record = records[-1]
            payload = record.shard.payload(record.offset, record.size)
            place = (record.shard.path.name, record.offset)
            if payload is not None and place not in self._checked and zlib.crc32(payload.numpy().data) != record.crc:
                self._print(f"{record.shard.path} is damaged at byte {record.offset}: this record is computed again")
                payload = None
            if payload is not None:
                self._checked.add(place)
                self._mark_used(record.shard)
                return record.kind, record.shape, payload
            records.pop()
        return None

    def _mark_used(self, shard: Shard) -> None:
        """Set the shard's modification time, about once a minute: it decides which shards are removed first."""
        now = time.time()
        if now - shard.touched > IN_USE_SECONDS / 2:
            shard.touched = now
            with contextlib.suppress(OSError):
                os.utime(shard.path)

    # ---- writing ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claim(self, keys: Iterable[bytes]) -> Iterator[set[bytes]]:
        """Yield the keys that no other process has claimed. They stay claimed until the block or the process ends."""
        mine = set()
        try:
            for key in keys:
                try:
                    fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._print(f"{self.folder} is on a file system without locks ({error.strerror})")
                mine.add(key)
            yield mine
        finally:
            for key in mine:
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _byte(key))

    def wait_for(self, key: bytes) -> None:
        """Wait until the process that has claimed the key is done or dead. The caller must hold no claims."""
        fcntl.lockf(self._claims, fcntl.LOCK_EX, 1, _byte(key))
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _byte(key))

    def append(self, key: bytes, kind: int, shape: tuple[int, int, int], payload: memoryview) -> bool:
        """Append a record to this process's shard; return False, after printing the reason, if it is not stored."""
        size = HEADER_BYTES + aligned(len(payload))
        if self._unwritable:
            return False
        if not self._make_room(size):
            self._print(f"the feature store has reached its {self.max_bytes / 2**30:.3g} GB: nothing more is stored")
            return False
        record, crc = as_record(key, kind, shape, payload)
        try:
            if self._own is None or self._own.scanned + size > self.shard_bytes or self._own_was_removed():
                self._start_shard()
            assert self._own is not None and self._file is not None
            rest = memoryview(record)
            while rest:  # on a disk that fills up, a part may be written first
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            reason = error.strerror or error
            self._print(f"the feature store {self.root} cannot be written ({reason}): nothing more is stored")
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

    def _own_was_removed(self) -> bool:
        """True if another process has removed this process's shard to make room."""
        return self._file is not None and os.fstat(self._file).st_nlink == 0

    def _start_shard(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self._own = self._shards[name] = Shard(self.folder / name, touched=time.time())
        self._file = os.open(self._own.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def _make_room(self, size: int) -> bool:
        """Remove shards that are not in use, the least recently used first; return True if `size` bytes fit then."""
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
        # Only a part of what is left, as other processes append as well.
        fits = total + size <= self.max_bytes
        self._allowance = max(size, (self.max_bytes - total) // 16) if fits else 0
        return fits

    def _print(self, message: str) -> None:
        """Print a message, once in the life of this object."""
        if message not in self._printed:
            self._printed.add(message)
            print(f"[superbit] {message}", flush=True)


def _byte(key: bytes) -> int:
    """Return the key's byte in the file of claims, which stays empty: only locks refer to its bytes."""
    return int.from_bytes(key[:7], "little")
