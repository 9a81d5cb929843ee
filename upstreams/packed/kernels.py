"""Which kernel computes: the native one at a level this processor has, numba's for w1a1, or torch. Imports no torch.

SUPERBIT_KERNEL=avx512|avx2|scalar|numba|torch forces one.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.errors import UserError, nearest

VARIABLE = "SUPERBIT_KERNEL"
LEVELS = ("scalar", "avx2", "avx512")
INTERFACE = 2  # superbit_interface() of the library that this module calls
LANES = 16  # outputs in a block of weights

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, str] = {  # of p(ointer), l(ong), f(loat) and i(nt), after the level and the threads
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
_TYPES = {"p": _POINTER, "l": _LONG, "f": _FLOAT, "i": _INT}


def words(columns: int) -> int:
    """32-bit words that hold that many bits."""
    return -(-columns // 32)


def in_blocks(codes: Bytes) -> Words:
    """The kernel's layout of a layer's weights.

    codes: (outputs, bytes) rows of bits, the lowest first -> (blocks, words, 16), zeros where there are no bits.
    """
    outputs, columns = codes.shape
    blocks = -(-outputs // LANES)
    padded = np.zeros((blocks * LANES, words(columns * 8) * 4), np.uint8)
    padded[:outputs, :columns] = codes
    return np.ascontiguousarray(padded.view("<u4").reshape(blocks, LANES, -1).transpose(0, 2, 1), np.uint32)


def in_float_blocks(weight: Floats) -> Floats:
    """The same for a float layer: weight (outputs, inputs) -> (blocks, inputs, 16)."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, inputs), np.float32)
    padded[:outputs] = weight
    return np.ascontiguousarray(padded.reshape(-1, LANES, inputs).transpose(0, 2, 1))


def padded_to_block(values: NDArray[Any]) -> NDArray[Any]:
    """(outputs,) -> the same with zeros up to a whole block."""
    return np.concatenate([values, np.zeros(-len(values) % LANES, values.dtype)])


def _window(lengths: Any, first: int, radius: int | None, relative: Floats | None) -> tuple[Any, ...]:
    reach = 0 if relative is None else relative.shape[-1] // 2
    return lengths, first, -1 if radius is None else radius, relative, reach


def _address(array: Any) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # twice as fast as the other way
    except (TypeError, ValueError):  # read-only, or empty
        return array.ctypes.data


@dataclass(frozen=True)
class Native:
    """The compiled kernel at one level, with that many threads.

    Arrays are C-contiguous and of the dtypes named; nothing is checked here that the callers have checked at loading.
    """

    level: int
    threads: int

    def _call(self, name: str, *arguments: Any) -> None:
        # The library is looked up, not kept, so that what holds a kernel can be copied and pickled.
        values = [_address(a) if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(_library(), f"superbit_{name}")(self.level, self.threads, *values)

    def binarize(self, x: Floats, shift: Floats | None, threshold: float = 0.0, strict: bool = False) -> Words:
        """(rows, columns) -> bits (rows, words): x + shift >= threshold, or > where `strict`."""
        bits = np.empty((x.shape[0], words(x.shape[1])), np.uint32)
        self._call("binarize", x, *x.shape, shift, threshold, strict, bits)
        return bits

    def binary_to_floats(
        self, bits: Words, weights: Words, outputs: int, offset: Integers, scale: Floats, bias: Floats
    ) -> Floats:
        """scale (offset - 2 differing bits) + bias; offset, scale and bias are padded to blocks -> (rows, outputs)."""
        out = np.empty((len(bits), outputs), np.float32)
        self._call("binary_to_floats", bits, *bits.shape, weights, outputs, offset, scale, bias, out)
        return out

    def binary_to_bits(self, bits: Words, weights: Words, outputs: int, limit: Integers) -> Words:
        """Whether fewer than `limit` (outputs padded to blocks) bits differ -> (rows, words(outputs))."""
        out = np.empty((len(bits), words(outputs)), np.uint32)
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
        """Attention on bits (batch, queries or keys, heads, words(dim)) -> (batch, queries, heads, dim).

        lengths: (batch,) keys that are not padding; first: the key where the first query stands; radius: None for all.
        scales: of scores, the threshold of probabilities, of values. relative: (batch, heads, queries, 2 reach + 1).
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
        """As `binary_attention`, on floats (batch, queries or keys, heads, dim), or on whole numbers.

        scales: of scores; of probabilities, which become whole numbers up to the third unless that is 0; of values.
        """
        out = np.empty_like(query)
        shape = (query.shape[0], query.shape[1], key.shape[1], *query.shape[2:])
        window = _window(lengths, first, radius, relative)
        self._call("float_attention", query, key, value, *shape, *window, *scales, out)
        return out

    def quantize_bytes(self, x: Floats, alpha: float, low: int, high: int) -> Bytes:
        """(rows, columns) -> clip(round(x / alpha), low, high) - low in (rows, 32 words(columns)) bytes."""
        out = np.empty((x.shape[0], words(x.shape[1]) * 32), np.uint8)
        self._call("quantize_bytes", x, *x.shape, alpha, low, high, out)
        return out

    def byte_product(
        self, x: Bytes, weights: Words, outputs: int, offset: Integers, scale: Floats, bias: Floats
    ) -> Floats:
        """scale (offset + x weights) + bias with weights of +1 and -1 -> (rows, outputs)."""
        out = np.empty((len(x), outputs), np.float32)
        self._call("byte_product", x, len(x), x.shape[1] // 32, weights, outputs, offset, scale, bias, out)
        return out

    def sign_product(self, x: Floats, weights: Words, outputs: int, scale: Floats, bias: Floats) -> Floats:
        """scale (x weights) + bias with weights of +1 and -1 -> (rows, outputs)."""
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
        """x weights + bias -> (rows, outputs).

        window: x (frames, channels) is read in overlapping windows of that many frames, one for each row.
        zeros: how many rows x begins and ends with that are known to be zero, which saves their products.
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
        """Layer normalisation of (rows, dim)."""
        out = np.empty_like(x)
        self._call("layer_norm", x, *x.shape, weight, bias, epsilon, out)
        return out

    def depthwise(self, x: Floats, weights: Floats, bias: Floats, stride: int = 1) -> Floats:
        """x (frames, channels), weights (taps, channels) -> a filter a channel, where all taps find a frame."""
        taps, channels = weights.shape
        out = np.empty(((len(x) - taps) // stride + 1, channels), np.float32)
        self._call("depthwise", x, len(out), channels, taps, stride, weights, bias, out)
        return out

    def popcount_peak(self, rounds: int) -> None:
        """xor, popcount and add on registers alone, 12 x 16 words a round: what AVX-512 allows, to measure against."""
        self._call("popcount_peak", rounds, np.empty(1, np.uint32))

    def gelu(self, x: Floats) -> None:
        """x becomes gelu(x)."""
        self._call("gelu", x, x.size)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernel beside this file, if the package was built with a compiler."""
    for path in sorted(Path(__file__).parent.glob("_kernel*.so")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # of another architecture
            continue
        if library.superbit_interface() != INTERFACE:  # left over from another version
            continue
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"superbit_{name}")
            function.argtypes = [_INT, _INT, *(_TYPES[letter] for letter in signature)]
            function.restype = None
        return library
    return None


def give_back_memory() -> None:
    """Return to the system what was freed, where the C library can: loading frees as much as it keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def native_levels() -> tuple[str, ...]:
    """The native kernel's levels that this machine has, best first."""
    library = _library()
    return () if library is None else LEVELS[: library.superbit_best_level() + 1][::-1]


def available() -> tuple[str, ...]:
    """Every kernel that can be chosen here, best first; torch is the last."""
    numba = ("numba",) if importlib.util.find_spec("numba") else ()
    return (*native_levels(), *numba, "torch")


def native(level: str, threads: int = 1) -> Native:
    """The native kernel at one of `native_levels()`."""
    return Native(LEVELS.index(level), threads)


def chosen() -> str:
    """The name of the kernel that computes. Raises UserError when SUPERBIT_KERNEL names one that is not here."""
    return chosen_by(os.environ.get(VARIABLE))


@functools.cache
def chosen_by(forced: str | None) -> str:
    """The kernel that computes when SUPERBIT_KERNEL has that value, None for unset."""
    choices = (*LEVELS, "numba", "torch")
    here = available()
    if forced is None:
        if not native_levels():
            print(
                f"superbit: no compiled kernel is installed, so {here[0]} computes 1-bit products: "
                "reinstall superbit where there is a C++ compiler for the fast one",
                file=sys.stderr,
            )
        return here[0]
    if forced not in choices:
        raise UserError(f"{VARIABLE}={forced} is no kernel: {nearest(forced, choices)}")
    if forced not in here:
        raise UserError(f"{VARIABLE}={forced} cannot be used on this machine, which has {', '.join(here)}")
    return forced
