"""Parameters, MACs and storage of a cell's upstream, computed once for each checkpoint and kept in the runs' folder."""

from __future__ import annotations

import hashlib

from runners.features.code import code_version
from runners.matrix.cell import Cell
from upstreams.files import read_json, write_json

KEYS = ("parameters", "macs", "storage_bytes")


def costs(cell: Cell) -> dict[str, int | None]:
    """Return `parameters`, `macs` and `storage_bytes`; None for upstreams other than this project's and s3prl's fbank.

    Counting takes seconds, so the counts are kept in RUNS/costs, by the upstream's name, the checkpoint's digest and
    the code that counts.
    """
    from upstreams import registry

    if cell.upstream not in (*registry.names(), "fbank", "fbank_no_cmvn"):
        return dict.fromkeys(KEYS)
    digest = hashlib.sha256(f"{cell.checkpoint_sha256} {code_version()}".encode()).hexdigest()
    file = cell.folder.parents[3] / "costs" / f"{cell.upstream}-{digest[:24]}.json"
    kept = read_json(file)
    if kept is None or set(kept) != set(KEYS):
        kept = dict(registry.describe(cell.upstream, cell.checkpoint))
        write_json(file, kept)
    return kept
