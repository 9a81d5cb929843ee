"""The compiled runtime (engine/superbit.h), called through ctypes. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.errors import UserError
from upstreams.quantization.levels import NAN

LEVELS = ("avx512", "avx2", "neon_dot", "neon", "scalar")
VERSION = 2  # what superbit_version() of the library must return
MAX_THREADS = 255
MESSAGE = 2000  # bytes

Floats = NDArray[np.float32]

OK, NO_MEMORY, NOT_A_NUMBER = 0, 1, 2

_int, _long, _float, _text, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_char_p, ctypes.c_void_p
_handle = ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (_int, ()),
    "status_text": (_text, (_int,)),
    "level": (_text, (_int,)),
    "open": (_int, (_text, _handle, _pointer, ctypes.c_size_t)),
    "open_memory": (_int, (_text, ctypes.c_size_t, _handle, _pointer, ctypes.c_size_t)),
    "close": (None, (_pointer,)),
    "frames": (_long, (_pointer, _long)),
    "config": (_text, (_pointer,)),
    "slots": (_int, (_pointer,)),
    "slot": (_text, (_pointer, _int)),
    "classes": (_int, (_pointer, _int)),
    "class": (_text, (_pointer, _int, _int)),
    "session_open": (_int, (_pointer, _int, _text, _handle)),
    "session_close": (None, (_pointer,)),
    "forward_batch": (_int, (_pointer, _long, _pointer, _pointer, _int, _pointer)),
    "weighted_sum": (_int, (_pointer, _pointer, _long, _pointer, _pointer)),
    "decide": (_int, (_pointer, _pointer, _long, _pointer, _pointer)),
    "front_end": (_int, (_pointer, _pointer, _long, _pointer)),
    "encode": (_int, (_pointer, _pointer, _long, _int, _pointer)),
    "stream_open": (_int, (_pointer, _handle)),
    "stream_close": (None, (_pointer,)),
    "stream_feed": (_int, (_pointer, _pointer, _long)),
    "stream_flush": (_int, (_pointer,)),
    "stream_frames": (_pointer, (_pointer, _int, ctypes.POINTER(_long))),
    "stream_samples_needed": (_long, (_pointer, _int, _long)),
    "stream_bytes": (_long, (_pointer,)),
    "measure": (_int, (_text, _int, _long)),
}


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the compiled library beside this file, or None and the reason why there is none."""
    reason = "no compiled kernel is installed"
    for path in sorted(Path(__file__).parent.glob("_kernel*.so")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            reason = f"{path.name} was compiled for another platform"
            continue
        version = library.superbit_version() if hasattr(library, "superbit_version") else 0
        if version != VERSION:
            reason = f"{path.name} has interface version {version}, but this superbit needs version {VERSION}"
            continue
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, f"superbit_{name}")
            function.restype, function.argtypes = result, arguments
        return library, ""
    return None, reason


def levels() -> tuple[str, ...]:
    """Return the levels of the compiled kernel that this processor has, best first; none without a compiled kernel."""
    library, _ = load()
    found: list[str] = []
    while library is not None and (name := library.superbit_level(len(found)).decode()):
        found.append(name)
    return tuple(found)


def missing_reason() -> str:
    """Return why there is no compiled kernel, "" if there is one."""
    return load()[1]


def call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status. Raises MemoryError and UserError (a ValueError) for what it reports."""
    library, reason = load()
    if library is None:
        raise UserError(reason)
    status = getattr(library, f"superbit_{name}")(*arguments)
    if status == NO_MEMORY:
        raise MemoryError(f"superbit_{name} could not allocate its working memory")
    if status == NOT_A_NUMBER:
        raise UserError(NAN)
    if status != OK:
        raise UserError(library.superbit_status_text(status).decode())


class Model:
    """A packed model in the layout of the kernel. It does not change.

    Raises UserError if the file is invalid. A copy or a pickle of a model does not exist: its owner makes it again.
    """

    def __init__(self, packed: Path | bytes) -> None:
        library, reason = load()
        if library is None:
            raise UserError(reason)
        handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE)
        if isinstance(packed, bytes):
            where, status = "the model", library.superbit_open_memory(packed, len(packed), handle, message, MESSAGE)
        else:
            where, status = str(packed), library.superbit_open(bytes(packed), handle, message, MESSAGE)
        if status == NO_MEMORY:
            raise MemoryError(f"{where} does not fit into the memory")
        if status != OK:
            raise UserError(f"{where} {message.value.decode(errors='replace')}")
        self.handle, self._close = handle, library.superbit_close

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._close(self.handle)

    @property
    def config(self) -> str:
        """The configuration, JSON."""
        library, _ = load()
        assert library is not None
        return library.superbit_config(self.handle).decode()

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """The classes of each slot of the file's head; empty if it holds no head."""
        library, _ = load()
        assert library is not None
        return {
            library.superbit_slot(self.handle, slot).decode(): tuple(
                library.superbit_class(self.handle, slot, number).decode()
                for number in range(library.superbit_classes(self.handle, slot))
            )
            for slot in range(library.superbit_slots(self.handle))
        }

    def frame_count(self, samples: int) -> int:
        """Return the number of frames of an utterance of `samples` samples."""
        library, _ = load()
        assert library is not None
        return library.superbit_frames(self.handle, samples)


class Session:
    """What runs a model at a level with a number of threads. One thread uses it at a time."""

    def __init__(self, model: Model, threads: int, level: str) -> None:
        self.handle = ctypes.c_void_p()
        library, _ = load()
        assert library is not None
        self._close = library.superbit_session_close
        call("session_open", model.handle, threads, level.encode(), self.handle)

    def __del__(self) -> None:
        if self.handle:
            self._close(self.handle)


def address(array: NDArray[Any]) -> int:
    """Return the address of a C-contiguous array's first element."""
    assert array.flags.c_contiguous
    return array.ctypes.data
