"""Feature-store settings, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DTYPES = ("fp16", "int8", "fp32")


@dataclass(frozen=True)
class StoreSettings:
    """Where hidden states are stored, how many bytes they may take in all, and their number format."""

    folder: Path
    max_bytes: int
    dtype: str = "fp16"  # one of DTYPES
