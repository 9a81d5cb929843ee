"""The choice of the kernel: native at a level of this processor, or torch. Imports no torch.

The environment variable SUPERBIT_KERNEL=avx512|avx2|neon_dot|neon|scalar|torch selects one.
"""

from __future__ import annotations

import functools
import os
import sys

from upstreams.errors import UserError, nearest
from upstreams.packed.library import LEVELS, levels, missing_reason

VARIABLE = "SUPERBIT_KERNEL"


def available() -> tuple[str, ...]:
    """Return the names of the kernels that this machine can use, best first; torch is the last."""
    return (*levels(), "torch")


def chosen() -> str:
    """Return the name of the selected kernel. Raises UserError if SUPERBIT_KERNEL names one that is not available."""
    return chosen_by(os.environ.get(VARIABLE))


@functools.cache
def chosen_by(variable: str | None) -> str:
    """Return the kernel for a value of SUPERBIT_KERNEL; None: unset, which selects the best one."""
    choices = (*LEVELS, "torch")
    here = available()
    if variable is None:
        if not levels():
            print(
                f"superbit: {missing_reason()}; torch computes packed models instead. "
                "Reinstall superbit with a C++ compiler for the fast kernel",
                file=sys.stderr,
            )
        return here[0]
    if variable not in choices:
        raise UserError(f"{VARIABLE}={variable} is not a kernel: {nearest(variable, choices)}")
    if variable not in here:
        raise UserError(f"{VARIABLE}={variable} is not available on this machine; available are {', '.join(here)}")
    return variable
