"""The native kernel (kernel/interface.h), called through ctypes. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.errors import UserError
from upstreams.packed.layout import Bytes, Floats, Integers, Words, words_of
from upstreams.quantization.levels import NAN

LEVELS = ("scalar", "avx2", "avx512")
INTERFACE = 3  # ABI version: what superbit_interface() of the library must return
MAX_THREADS = 255

_ARRAYS = {letter: np.dtype(kind) for letter, kind in zip("FWIBL", ("f4", "u4", "i4", "u1", "i8"), strict=True)}
_NUMBERS = {"l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES: dict[str, str] = {  # the arguments after the level and the number of threads; capitals are arrays
    "binarize": "FllFfiW",
    "binary_to_floats": "WllWlIFFF",
    "binary_to_bits": "WllWlIW",
    "binary_attention": "WWWlllllLllFlfffF",
    "float_attention": "FFFlllllLllFlffffF",
    "quantize_bytes": "FllfffB",
    "byte_product": "BllWlIFFF",
    "sign_product": "FllWlFFF",
    "float_product": "FlllllFlFFl",
    "layer_norm": "FllFFfF",
    "depthwise": "FllllFFF",
    "gelu": "Fl",
    "popcount_peak": "lW",
}


def _window(
    queries: int, keys: int, lengths: Any, first: int, radius: int | None, relative: Floats | None
) -> tuple[Any, ...]:
    """Return the kernel's arguments from `lengths` to `reach`."""
    radius = -1 if radius is None else min(radius, keys)  # a larger one would overflow the kernel's integers
    reach = 0 if relative is None else relative.shape[-1] // 2
    farthest = max(first + queries, keys - first) - 1
    farthest = farthest if radius < 0 else min(farthest, radius)
    if relative is not None and reach < farthest:
        raise ValueError(f"relative scores reach {reach} frames, but keys up to {farthest} frames away are visible")
    return lengths, first, radius, relative, reach


def _same(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name}: the input has a width of {found}, but the weights have {expected}")


def _address(name: str, array: Any, dtype: np.dtype[Any]) -> int:
    """Return the address of an array's first element, for the function `name`. This is the only check of arrays."""
    if array.dtype != dtype:
        raise TypeError(f"{name}: an array is of type {array.dtype} instead of {dtype}")
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # twice as fast as `array.ctypes.data`
    except (TypeError, ValueError):  # an array that is read-only, empty or not contiguous
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: an array of shape {array.shape} is not C-contiguous") from None
        return array.ctypes.data


@dataclass(frozen=True)
class Native:
    """The compiled kernel at one level (an index of LEVELS) with a number of threads.

    Arrays must be C-contiguous and of the annotated types. Raises ValueError or TypeError if one is not, MemoryError if
    the kernel's working memory cannot be allocated, and UserError if NaN would become a whole number.
    """

    level: int
    threads: int

    @classmethod
    def at(cls, level: str, threads: int = 1) -> Native:
        """Return the kernel at one of `native_levels()`."""
        return cls(LEVELS.index(level), threads)

    def _call(self, name: str, *arguments: Any) -> None:
        # The library is no attribute, so that objects that hold a kernel can be copied and pickled.
        values = [
            _address(name, argument, _ARRAYS[letter]) if isinstance(argument, np.ndarray) else argument
            for letter, argument in zip(_SIGNATURES[name], arguments, strict=True)
        ]
        status = getattr(_load()[0], f"superbit_{name}")(self.level, self.threads, *values)
        if status == 1:
            raise MemoryError(f"the kernel's {name} could not allocate its working memory")
        if status == 2:
            raise UserError(NAN)

    def binarize(self, x: Floats, shift: Floats | None, threshold: float = 0.0, strict: bool = False) -> Words:
        """Return (rows, columns) as bits (rows, words): x + shift >= threshold, or > if `strict`."""
        if shift is not None:
            _same("binarize", x.shape[1], len(shift))
        bits = np.empty((x.shape[0], words_of(x.shape[1])), np.uint32)
        self._call("binarize", x, *x.shape, shift, threshold, strict, bits)
        return bits

    def binary_to_floats(
        self, bits: Words, weights: Words, outputs: int, offset: Integers, scale: Floats, bias: Floats
    ) -> Floats:
        """Return scale (offset - 2 differing bits) + bias, (rows, outputs).

        bits: (rows, words). offset, scale and bias are padded to blocks.
        """
        _same("binary_to_floats", bits.shape[1], weights.shape[1])
        out = np.empty((len(bits), outputs), np.float32)
        self._call("binary_to_floats", bits, *bits.shape, weights, outputs, offset, scale, bias, out)
        return out

    def binary_to_bits(self, bits: Words, weights: Words, outputs: int, limit: Integers) -> Words:
        """Return bits (rows, words of the outputs): fewer than `limit` bits differ. limit: padded to blocks."""
        _same("binary_to_bits", bits.shape[1], weights.shape[1])
        out = np.empty((len(bits), words_of(outputs)), np.uint32)
        self._call("binary_to_bits", bits, *bits.shape, weights, outputs, limit, out)
        return out

    def binary_attention(
        self,
        query: Words,
        key: Words,
        value: Words,
        dim: int,
        lengths: NDArray[np.int64],
        first: int,
        radius: int | None,
        scales: tuple[float, float, float],
        relative: Floats | None = None,
    ) -> Floats:
        """Return attention on bits, (batch, queries, heads, dim).

        query, key, value: (batch, queries or keys, heads, words of a head). lengths: (batch,), keys without padding.
        first: the key at the position of the first query. radius: visible frames to either side, None for all.
        scales: scale of scores, threshold of probabilities, scale of values. relative: scores added by offset,
        (batch, heads, queries, 2 reach + 1).
        """
        _same("binary_attention", query.shape[3], words_of(dim))
        out = np.empty((*query.shape[:3], dim), np.float32)
        shape = (query.shape[0], query.shape[1], key.shape[1], query.shape[2], dim)
        window = _window(query.shape[1], key.shape[1], lengths, first, radius, relative)
        self._call("binary_attention", query, key, value, *shape, *window, *scales, out)
        return out

    def float_attention(
        self,
        query: Floats,
        key: Floats,
        value: Floats,
        lengths: NDArray[np.int64],
        first: int,
        radius: int | None,
        scales: tuple[float, float, int, float],
        relative: Floats | None = None,
    ) -> Floats:
        """Return attention on floats or on whole numbers, (batch, queries or keys, heads, dim).

        scales: scale of scores, scale of probabilities, highest level of probabilities, scale of values. The
        probabilities are quantized unless the highest level is 0. Other arguments as in `binary_attention`.
        """
        out = np.empty(query.shape, np.float32)
        shape = (query.shape[0], query.shape[1], key.shape[1], *query.shape[2:])
        window = _window(query.shape[1], key.shape[1], lengths, first, radius, relative)
        self._call("float_attention", query, key, value, *shape, *window, *scales, out)
        return out

    def quantize_bytes(self, x: Floats, alpha: float, low: int, high: int) -> Bytes:
        """Return clip(round(x / alpha), low, high) - low: (rows, columns) -> bytes (rows, 32 words_of(columns))."""
        out = np.empty((x.shape[0], words_of(x.shape[1]) * 32), np.uint8)
        self._call("quantize_bytes", x, *x.shape, alpha, low, high, out)
        return out

    def byte_product(
        self, x: Bytes, weights: Words, outputs: int, offset: Integers, scale: Floats, bias: Floats
    ) -> Floats:
        """Return scale (offset + x weights) + bias, (rows, outputs), for weights of +1 and -1."""
        _same("byte_product", x.shape[1], weights.shape[1] * 32)
        out = np.empty((len(x), outputs), np.float32)
        self._call("byte_product", x, len(x), x.shape[1] // 32, weights, outputs, offset, scale, bias, out)
        return out

    def sign_product(self, x: Floats, weights: Words, outputs: int, scale: Floats, bias: Floats) -> Floats:
        """Return scale (x weights) + bias, (rows, outputs), for weights of +1 and -1."""
        _same("sign_product", words_of(x.shape[1]), weights.shape[1])
        out = np.empty((len(x), outputs), np.float32)
        self._call("sign_product", x, *x.shape, weights, outputs, scale, bias, out)
        return out

    def float_product(
        self,
        x: Floats,
        weights: Floats,
        outputs: int,
        bias: Floats,
        window: int | None = None,
        zeros: tuple[int, int] = (0, 0),
    ) -> Floats:
        """Return x weights + bias, (rows, outputs).

        window: frames of a row, if x (frames, channels) is read in overlapping windows. zeros: how many rows at the
        beginning and at the end of x are known to be zero; their products are skipped.
        """
        rows, inputs = x.shape
        stride = inputs
        first, last = zeros[0] * stride, (rows - zeros[1]) * stride
        if window is not None:
            rows, inputs = rows - window + 1, inputs * window
        _same("float_product", inputs, weights.shape[1])
        out = np.empty((rows, outputs), np.float32)
        self._call("float_product", x, rows, stride, inputs, first, last, weights, outputs, bias, out, outputs)
        return out

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats, epsilon: float = 1e-5) -> Floats:
        """Return the layer normalisation of (rows, dim)."""
        _same("layer_norm", x.shape[1], len(weight))
        out = np.empty(x.shape, np.float32)
        self._call("layer_norm", x, *x.shape, weight, bias, epsilon, out)
        return out

    def depthwise(self, x: Floats, weights: Floats, bias: Floats, stride: int = 1) -> Floats:
        """Return a depthwise convolution without padding, ((frames - taps) // stride + 1, channels).

        x: (frames, channels), weights: (taps, channels).
        """
        taps, channels = weights.shape
        _same("depthwise", x.shape[1], channels)
        out = np.empty(((len(x) - taps) // stride + 1, channels), np.float32)
        self._call("depthwise", x, len(out), channels, taps, stride, weights, bias, out)
        return out

    def popcount_peak(self, rounds: int) -> None:
        """Run XOR, popcount and addition on registers alone, 12 x 16 words a round: the processor's limit (AVX-512)."""
        self._call("popcount_peak", rounds, np.empty(1, np.uint32))

    def gelu(self, x: Floats) -> None:
        """Replace x by gelu(x)."""
        self._call("gelu", x, x.size)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the compiled library beside this file, or None and the reason why there is none."""
    reason = "no compiled kernel is installed"
    for path in sorted(Path(__file__).parent.glob("_kernel*.so")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            reason = f"{path.name} was compiled for another platform"
            continue
        version = library.superbit_interface()
        if version != INTERFACE:
            reason = f"{path.name} has interface version {version}, but this superbit needs version {INTERFACE}"
            continue
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"superbit_{name}")
            arguments = (_NUMBERS.get(letter, ctypes.c_void_p) for letter in signature)
            function.argtypes = [ctypes.c_int, ctypes.c_int, *arguments]
        return library, ""
    return None, reason


def native_levels() -> tuple[str, ...]:
    """Return the levels of the compiled kernel that this processor has, best first; none without a compiled kernel."""
    library, _ = _load()
    return () if library is None else LEVELS[: library.superbit_best_level() + 1][::-1]


def missing_reason() -> str:
    """Return why there is no compiled kernel, "" if there is one."""
    return _load()[1]


def release_memory() -> None:
    """Return freed memory to the system if the C library can: loading a model frees as much memory as it keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
