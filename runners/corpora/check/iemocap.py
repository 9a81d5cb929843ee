"""Check of IEMOCAP (ER)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.emotions import source_on_disk
from runners.corpora.files import check_audio, check_fresh, check_split_names, check_unique, existing_file
from upstreams.errors import UserError, nearest
from upstreams.files import read_text
from upstreams.s3prl.made_files import state


def check_er(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the two lists of the configured fold, their labels, and every file that they name."""
    check_split_names(splits)
    datarc = expert["datarc"]
    root = Path(datarc["root"])
    session = str(datarc.get("test_fold") or "fold1").replace("fold", "Session")
    source = source_on_disk(root)
    for kind in ("train", "test"):
        listing = existing_file(Path(datarc["meta_data"], session, f"{kind}_meta_data.json"), prepared_for="er")
        try:
            content = json.loads(read_text(listing))
            labels, rows = content["labels"], content["meta_data"]
            files = [str(row["path"]) for row in rows]
            unknown = [row["label"] for row in rows if row["label"] not in labels]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{listing} must hold `labels`, and `meta_data` with `path` and `label` in each row: {error!r}"
            ) from None
        if unknown:
            raise UserError(f"{listing} has the unknown label {unknown[0]!r}: {nearest(unknown[0], labels)}")
        if not files:
            raise UserError(f"{listing} lists no utterance")
        check_unique(files, listing)
        check_audio(root, files, rate=None, one_rate=True)
        if source is not None:
            check_fresh(listing, state(listing, source), "er")
