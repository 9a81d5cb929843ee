"""Parameters, MACs and storage of a cell's upstream, computed once for each checkpoint and kept in the runs' folder."""

from __future__ import annotations

import hashlib
from typing import Any

from runners.features.code import code_version
from runners.matrix.cell import Cell
from upstreams import registry
from upstreams.files import read_json, write_json

KEYS = ("parameters", "macs", "storage_bytes")


def costs(cell: Cell) -> dict[str, int | None]:
    """Return `parameters`, `macs` and `storage_bytes`; `macs` is None for an upstream with uncounted operations.

    Counting takes seconds, so the counts are kept in RUNS/costs, by the upstream's name, the checkpoint's digest and
    the code that computes and counts.
    """
    code = f"{code_version()} {cell.code.get('upstream', '')}"
    digest = hashlib.sha256(f"{cell.checkpoint_sha256} {code}".encode()).hexdigest()
    file = cell.folder.parents[3] / "costs" / f"{cell.upstream}-{digest[:24]}.json"
    kept = read_json(file)
    if kept is None or set(kept) != set(KEYS):
        is_known = cell.upstream in (*registry.names(), "fbank", "fbank_no_cmvn")
        kept = dict(registry.describe(cell.upstream, cell.checkpoint)) if is_known else _count(cell)
        write_json(file, kept)
    return kept


def _count(cell: Cell) -> dict[str, Any]:
    """Return the costs of an upstream that is not this project's."""
    from upstreams.s3prl.costs import describe
    from upstreams.s3prl.names import import_modules

    import_modules(cell.upstream_modules)
    from s3prl import hub

    options: dict[str, Any] = {"ckpt": str(cell.checkpoint)} if cell.checkpoint else {}
    return dict(describe(getattr(hub, cell.upstream)(**options), cell.device))
