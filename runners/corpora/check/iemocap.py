"""Check of IEMOCAP (ER)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, check_split_names, existing_file
from upstreams.errors import UserError, nearest


def check_er(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the two lists of the configured fold, their labels, and every file that they name."""
    check_split_names(splits)
    datarc = expert["datarc"]
    session = str(datarc.get("test_fold") or "fold1").replace("fold", "Session")
    for kind in ("train", "test"):
        listing = existing_file(Path(datarc["meta_data"], session, f"{kind}_meta_data.json"), prepared_for="er")
        try:
            content = json.loads(listing.read_text(encoding="utf-8"))
            labels, rows = content["labels"], content["meta_data"]
            files = [Path(datarc["root"], row["path"]) for row in rows]
            unknown = [row["label"] for row in rows if row["label"] not in labels]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{listing} must hold `labels`, and `meta_data` with `path` and `label` in each row: {error!r}"
            ) from None
        if unknown:
            raise UserError(f"{listing} has the unknown label {unknown[0]!r}: {nearest(unknown[0], labels)}")
        if not files:
            raise UserError(f"{listing} lists no utterance")
        check_audio(files, rate=None)
