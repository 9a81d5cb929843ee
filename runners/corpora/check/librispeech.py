"""Checks of LibriSpeech: audio and transcripts, with ASR's lists of lengths or PR's lexicon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.corpora.check.files import check_audio, column, existing_file, existing_folder, split_folders
from upstreams.errors import UserError
from upstreams.s3prl import ctc_corpus


def check_asr(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the lists of lengths, from which s3prl makes batches, every file that they name, and the transcripts."""
    datarc = expert["datarc"]
    existing_file(Path(datarc["dict_path"]))
    root, lists = Path(datarc["libri_root"]), Path(datarc["bucket_file"])
    for folders in split_folders(datarc, splits):
        for name in folders:
            existing_folder(root / name)
            listing = existing_file(lists / f"{name}.csv", prepared_for="asr")
            files = [root / row for row in column(listing, "file_path")]
            if not files:
                raise UserError(
                    f"{listing} lists no utterance; delete it, then `superbit corpus prepare asr` makes it again"
                )
            check_audio(files)
            for chapter in sorted({file.parent for file in files}):
                ctc_corpus.read_transcripts(chapter)


def check_pr(expert: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that every utterance has audio and words, the lexicon has the words, and the vocabulary the phones."""
    corpus = expert["corpus"]
    vocabulary = set(existing_file(Path(expert["text"]["vocab_file"])).read_text(encoding="utf-8").split())
    lexicon = ctc_corpus.read_lexicon(existing_file(Path(path)) for path in corpus["lexicon"])
    for folders in split_folders(corpus, splits):
        for name in folders:
            existing_folder(Path(corpus["path"], name))
        utterances = list(ctc_corpus.librispeech_utterances(corpus["path"], folders))
        check_audio(file for file, _ in utterances)
        for file, words in utterances:
            for phone in ctc_corpus.pronounce(words, lexicon, file):
                if phone not in vocabulary:
                    raise UserError(
                        f"the phone {phone!r}, which the lexicon gives for {file}, "
                        f"is not in {expert['text']['vocab_file']}"
                    )
