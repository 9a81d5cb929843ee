"""Check of Fluent Speech Commands (IC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, check_split_names, column, existing_folder
from upstreams.errors import UserError


def check_ic(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the three lists, every file that they name, and that the training list has all of their labels."""
    check_split_names(splits)
    root = existing_folder(Path(expert["datarc"]["file_path"]))
    known: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        listing = root / "data" / f"{split}_data.csv"
        files = [root / path for path in column(listing, "path")]
        if not files:
            raise UserError(f"{listing} lists no utterance")
        check_audio(files)
        for slot in ("action", "object", "location"):
            values = set(column(listing, slot))
            unseen = values - known.setdefault(slot, values)
            if unseen:
                raise UserError(f"{listing} has the {slot} {min(unseen)!r}, which train_data.csv lacks")
