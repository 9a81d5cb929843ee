"""How often the host waits for the device in a step of pre-training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENCODERS = (
    *("transformer_mini", "conformer_mini", "squeezeformer_mini", "sparseformer_dn_mini", "sparseformer_sw_mini"),
    "hubert_base",  # the waveform convolutions
)


def test_the_host_waits_once_a_step(tmp_path: Path) -> None:
    """In a process of its own, because the device is imagined (syncs.py)."""
    command = [sys.executable, "-m", "tests.pretrain.syncs", str(tmp_path), *ENCODERS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
