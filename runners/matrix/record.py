"""matrix.json in the runs folder: the order of rows and columns, for the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runners.matrix.file import Matrix
from upstreams.files import read_json, write_json

RECORD = "matrix.json"


def write_record(matrix: Matrix, out: Path, seeds: Iterable[int]) -> None:
    """Write the matrix's labels and tasks, and its seeds together with those of earlier runs."""
    before = read_record(out)
    record = {
        "upstreams": [upstream.label for upstream in matrix.upstreams],
        "tasks": list(matrix.tasks),
        "seeds": sorted({*before.get("seeds", []), *seeds}),
    }
    if record != before:
        write_json(out / RECORD, record)


def read_record(out: Path) -> dict[str, Any]:
    """Return the record of a runs folder: `upstreams`, `tasks`, `seeds`; empty if it has none."""
    return read_json(out / RECORD) or {}
