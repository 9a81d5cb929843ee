"""Check of Fluent Speech Commands (IC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import check_audio, check_split_names, check_unique, existing_folder, read_table
from upstreams.errors import UserError

SLOTS = ("action", "object", "location")


def check_ic(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the three lists, every file that they name, and that the training list has all of their labels."""
    check_split_names(splits)
    root = existing_folder(Path(expert["datarc"]["file_path"]))
    known: dict[str, set[str]] = {}
    files: list[str] = []
    for split in ("train", "valid", "test"):
        listing = root / "data" / f"{split}_data.csv"
        rows = read_table(listing, "path", *SLOTS)
        if not rows:
            raise UserError(f"{listing} lists no utterance")
        files += [path for path, *_ in rows]
        check_unique(files, f"{root / 'data'}")
        for slot, *values_of_rows in zip(SLOTS, *(row[1:] for row in rows), strict=True):
            values = set(values_of_rows)
            unseen = values - known.setdefault(slot, values)
            if unseen:
                raise UserError(f"{listing} has the {slot} {min(unseen)!r}, which train_data.csv lacks")
    check_audio(root, files)
