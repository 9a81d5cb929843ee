"""Check of QUESST 2014 (QbE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.files import check_audio, check_split_names, check_unique, existing_file, existing_folder
from runners.corpora.ground_truth import read_occurrences
from upstreams.errors import UserError
from upstreams.files import universal_lines


def check_qbe(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the lists of languages, every English file that they name, and the ground truth of the splits."""
    check_split_names(splits)
    root = existing_folder(Path(expert["datarc"]["dataset_root"]))
    parts = ["dev" if split == "dev" else "eval" for split in splits]
    names: list[str] = []
    for part in dict.fromkeys(["utterances", *parts]):
        listing = existing_file(root / "scoring" / f"language_key_{part}.lst")
        files = []
        for number, line in enumerate(universal_lines(listing), 1):
            if len(words := line.split()) != 2:
                raise UserError(f"{listing}, line {number}: expected `<folder>/<file>.wav <language>`, got {line!r}")
            if words[1] == "nnenglish":
                files.append(words[0].partition("/")[2])  # s3prl drops the first folder of the path, too
        if not files:
            raise UserError(f"{listing} names no file of the language nnenglish")
        check_unique(files, listing)
        names += files
    check_audio(root, names, rate=None, mono=False)
    for part in parts:
        read_occurrences(existing_folder(root / "scoring" / f"groundtruth_quesst14_{part}"))
