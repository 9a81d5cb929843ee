"""Names of the processor and the GPU, for the provenance of a number."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """Return the name of the processor, or `unknown processor`."""
    if platform.system() == "Darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "unknown processor"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return text.split("model name")[1].split(":")[1].split("\n")[0].strip()
    except (OSError, IndexError):  # the kernel names no ARM processor; lscpu knows the usual ones
        names = [line.partition(":")[2].strip() for line in _output_of("lscpu").splitlines() if "Model name" in line]
        return next(iter(names), platform.processor()) or "unknown processor"


def machine() -> str:
    """Return the architecture, the processor and its cores, such as `x86_64, AMD EPYC 7763, 2 cores`."""
    return f"{platform.machine()}, {processor()}, {os.cpu_count()} cores"


def device_name(device: str) -> str:
    """Return torch's name of a device; of a GPU with its model, such as `cuda (NVIDIA H100 80GB HBM3)`."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.cuda.is_available() else device


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
