"""The native kernel (kernel/interface.h), called through ctypes. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.packed.layout import Bytes, Floats, Integers, Words, words_of

LEVELS = ("scalar", "avx2", "avx512")
INTERFACE = 2  # ABI version: what superbit_interface() of the library must return

_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES: dict[str, str] = {  # the arguments after the level and the number of threads
    "binarize": "pllpfip",
    "binary_to_floats": "pllplpppp",
    "binary_to_bits": "pllplpp",
    "binary_attention": "ppplllllpllplfffp",
    "float_attention": "ppplllllpllplffffp",
    "quantize_bytes": "pllfffp",
    "byte_product": "pllplpppp",
    "sign_product": "pllplppp",
    "float_product": "plllllplppl",
    "layer_norm": "pllppfp",
    "depthwise": "pllllppp",
    "gelu": "pl",
    "popcount_peak": "lp",
}


def _window(lengths: Any, first: int, radius: int | None, relative: Floats | None) -> tuple[Any, ...]:
    reach = 0 if relative is None else relative.shape[-1] // 2
    return lengths, first, -1 if radius is None else radius, relative, reach


def _address(array: Any) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # twice as fast as `array.ctypes.data`
    except (TypeError, ValueError):  # a read-only or an empty array
        return array.ctypes.data


@dataclass(frozen=True)
class Native:
    """The compiled kernel at one level (an index of LEVELS) with a number of threads.

    Arrays must be C-contiguous and of the annotated types. Nothing is checked here: callers check arrays at loading.
    """

    level: int
    threads: int

    @classmethod
    def at(cls, level: str, threads: int = 1) -> Native:
        """Return the kernel at one of `native_levels()`."""
        return cls(LEVELS.index(level), threads)

    def _call(self, name: str, *arguments: Any) -> None:
        # The library is no attribute, so that objects that hold a kernel can be copied and pickled.
        values = [_address(a) if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(_load()[0], f"superbit_{name}")(self.level, self.threads, *values)

    def binarize(self, x: Floats, shift: Floats | None, threshold: float = 0.0, strict: bool = False) -> Words:
        """Return (rows, columns) as bits (rows, words): x + shift >= threshold, or > if `strict`."""
        bits = np.empty((x.shape[0], words_of(x.shape[1])), np.uint32)
        self._call("binarize", x, *x.shape, shift, threshold, strict, bits)
        return bits

    def binary_to_floats(
        self, bits: Words, weights: Words, outputs: int, offset: Integers, scale: Floats, bias: Floats
    ) -> Floats:
        """Return scale (offset - 2 differing bits) + bias, (rows, outputs).

        bits: (rows, words). offset, scale and bias are padded to blocks.
        """
        out = np.empty((len(bits), outputs), np.float32)
        self._call("binary_to_floats", bits, *bits.shape, weights, outputs, offset, scale, bias, out)
        return out

    def binary_to_bits(self, bits: Words, weights: Words, outputs: int, limit: Integers) -> Words:
        """Return bits (rows, words of the outputs): fewer than `limit` bits differ. limit: padded to blocks."""
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
        out = np.empty((*query.shape[:3], dim), np.float32)
        shape = (query.shape[0], query.shape[1], key.shape[1], query.shape[2], dim)
        window = _window(lengths, first, radius, relative)
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
        out = np.empty_like(query)
        shape = (query.shape[0], query.shape[1], key.shape[1], *query.shape[2:])
        window = _window(lengths, first, radius, relative)
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
        out = np.empty((len(x), outputs), np.float32)
        self._call("byte_product", x, len(x), x.shape[1] // 32, weights, outputs, offset, scale, bias, out)
        return out

    def sign_product(self, x: Floats, weights: Words, outputs: int, scale: Floats, bias: Floats) -> Floats:
        """Return scale (x weights) + bias, (rows, outputs), for weights of +1 and -1."""
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
        out = np.empty((rows, outputs), np.float32)
        self._call("float_product", x, rows, stride, inputs, first, last, weights, outputs, bias, out, outputs)
        return out

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats, epsilon: float = 1e-5) -> Floats:
        """Return the layer normalisation of (rows, dim)."""
        out = np.empty_like(x)
        self._call("layer_norm", x, *x.shape, weight, bias, epsilon, out)
        return out

    def depthwise(self, x: Floats, weights: Floats, bias: Floats, stride: int = 1) -> Floats:
        """Return a depthwise convolution without padding, ((frames - taps) // stride + 1, channels).

        x: (frames, channels), weights: (taps, channels).
        """
        taps, channels = weights.shape
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
            function.argtypes = [ctypes.c_int, ctypes.c_int, *(_TYPES[letter] for letter in signature)]
            function.restype = None
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
