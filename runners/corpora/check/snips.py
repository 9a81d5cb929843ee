"""Check of Audio SNIPS (SF)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, existing_file, existing_folder, split_folders
from upstreams.errors import UserError
from upstreams.s3prl import ctc_corpus


def check_sf(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the files of each split's speakers, their sentences, and that slots.txt names all slots."""
    corpus, text = expert["corpus"], expert["text"]
    existing_file(Path(text["vocab_file"]))
    root = existing_folder(Path(corpus["path"]))
    existing_file(root / "all.iob.snips.txt")
    slots_file = existing_file(Path(text["slots_file"]), prepared_for="sf")
    _, *slots = slots_file.read_text(encoding="utf-8").split("\n")  # s3prl skips the first line
    for folders in split_folders(corpus, splits):
        for name in folders:
            existing_folder(root / name)
        if f"{folders[0]}_speakers" not in corpus:
            raise UserError(f"the configuration lacks the key '{folders[0]}_speakers' beside the splits")
        utterances = list(ctc_corpus.snips_utterances(root, folders, corpus[f"{folders[0]}_speakers"]))
        check_audio(file for file, _ in utterances)
        used = set()
        for file, sentence in utterances:
            labels = set(sentence.partition("\t")[2].split(" ")[1:-1]) - {"O"}
            if unknown := labels - set(slots):
                raise UserError(f"the slot {min(unknown)!r} of {file} is not in {text['slots_file']}")
            used |= labels
        if not used:
            raise UserError(f"no utterance of {', '.join(folders)} below {root} has a slot: F1 is undefined")
