"""corpus.json: what `superbit corpus mini` says about the corpora that it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upstreams.errors import UserError
from upstreams.files import read_record

_REMEDY = "make the corpora again with `superbit corpus mini`"


def described_tasks(corpora: Path) -> dict[str, dict[str, Any]]:
    """Return `speech`, `label` and other facts by task; empty for corpora without corpus.json, which are real.

    Raises UserError if the file is damaged: embedded corpora would pass for real ones.
    """
    file = corpora / "corpus.json"
    found = read_record(file, _REMEDY).get("tasks", {})
    if not isinstance(found, dict) or not all(
        isinstance(facts, dict)
        and all(isinstance(facts.get(key), str) for key in ("speech", "label"))
        and isinstance(facts.get("splits", {}), dict)
        for facts in found.values()
    ):
        raise UserError(f"{file} is damaged: it does not describe the corpora by task; {_REMEDY}")
    return found
