"""The levels of quantizers: the same from torch tensors and numpy arrays, and importable without either."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from upstreams.quantization.levels import whole_numbers


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_torch_and_numpy_give_the_same_whole_numbers(bits: int, signed: bool) -> None:
    """Values at and between all levels, beyond both ends, and zeros of both signs."""
    x = torch.cat([torch.arange(-600, 600) * 0.05, torch.tensor([-0.0, 0.0])])
    ours = whole_numbers(x, bits, signed, torch.tensor(0.1), torch)
    theirs = whole_numbers(x.numpy(), bits, signed, np.array(0.1, np.float32), np)
    assert ours.dtype == torch.float32 and theirs.dtype == np.float32
    assert np.array_equal(ours.numpy(), theirs)
    levels = (
        {-1, 1} if bits == 1 and signed else set(range(-(2**bits) // 2, 2**bits // 2) if signed else range(2**bits))
    )
    assert set(ours.tolist()) == levels


def test_levels_and_constants_need_no_torch() -> None:
    code = (
        "import sys, upstreams.config, upstreams.quantization.levels as l; print({'torch', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
