"""What is said of a feature store before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DTYPES = ("fp16", "int8", "fp32")


@dataclass(frozen=True)
class StoreSettings:
    """Where hidden states are kept, how many bytes of them in all, and as what numbers."""

    folder: Path
    max_bytes: int
    dtype: str = "fp16"
