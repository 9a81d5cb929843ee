"""The choice of the kernel: native at a level of this processor, numba for w1a1, or torch. Imports no torch.

The environment variable SUPERBIT_KERNEL=avx512|avx2|scalar|numba|torch selects one.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

from upstreams.errors import UserError, nearest
from upstreams.packed.native import LEVELS, missing_reason, native_levels

VARIABLE = "SUPERBIT_KERNEL"


def available() -> tuple[str, ...]:
    """Return the names of the kernels that this machine can use, best first; torch is the last."""
    numba = ("numba",) if importlib.util.find_spec("numba") else ()
    return (*native_levels(), *numba, "torch")


def chosen() -> str:
    """Return the name of the selected kernel. Raises UserError if SUPERBIT_KERNEL names one that is not available."""
    return chosen_by(os.environ.get(VARIABLE))


@functools.cache
def chosen_by(variable: str | None) -> str:
    """Return the kernel for a value of SUPERBIT_KERNEL; None: unset, which selects the best one."""
    choices = (*LEVELS, "numba", "torch")
    here = available()
    if variable is None:
        if not native_levels():
            print(
                f"superbit: {missing_reason()}; {here[0]} computes 1-bit products instead. "
                "Reinstall superbit with a C++ compiler for the fast kernel",
                file=sys.stderr,
            )
        return here[0]
    if variable not in choices:
        raise UserError(f"{VARIABLE}={variable} is not a kernel: {nearest(variable, choices)}")
    if variable not in here:
        raise UserError(f"{VARIABLE}={variable} is not available on this machine; available are {', '.join(here)}")
    return variable
