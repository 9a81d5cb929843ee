"""IEMOCAP's evaluations: the emotion of each utterance, and SUPERB's lists of them."""

from __future__ import annotations

import re
from pathlib import Path

from runners.corpora.published import EMOTIONS
from upstreams.audio_files import find_audio, is_hidden
from upstreams.errors import UserError
from upstreams.s3prl.made_files import digest

# A line of IEMOCAP's evaluations: [start - end] TAB utterance TAB emotion TAB [valence, activation, dominance]
EVALUATION = re.compile(r"\[[^\]]*\]\t(\S+)\t(\w+)\t")

Rows = dict[int, list[dict[str, str]]]  # session -> path, label and speaker of each utterance


def sessions(root: Path) -> list[int]:
    """Return the numbers of the sessions that IEMOCAP's folder holds."""
    return sorted(int(path.name[7:]) for path in root.glob("Session*") if path.name[7:].isdecimal())


def read_emotions(root: Path, session: int) -> list[dict[str, str]]:
    """Return path, label and speaker of a session's utterances that the evaluators agree to be of the four emotions.

    Follows s3prl's IEMOCAP_preprocess.py: excitement counts as happiness, utterances without audio are left out.
    Raises UserError if the evaluations are missing, or no utterance is left.
    """
    folder = _evaluations(root, session)
    if not folder.is_dir():
        raise UserError(
            f"the folder {folder} is missing: it should hold IEMOCAP's evaluations, one .txt for each dialog"
        )
    wav = f"Session{session}/sentences/wav"
    names = find_audio(root / wav, (".wav",)) if (root / wav).is_dir() else []
    audio = {Path(name).stem: f"{wav}/{name}" for name in names}
    rows = []
    for listing in sorted(folder.glob("*.txt")):
        if is_hidden(listing.name):
            continue
        for utterance, emotion in EVALUATION.findall(listing.read_text(encoding="utf-8", errors="replace")):
            label = "hap" if emotion == "exc" else emotion
            if label in EMOTIONS and utterance in audio:
                rows.append({"path": audio[utterance], "label": label, "speaker": utterance.split("_")[0]})
    if not rows:
        raise UserError(f"{folder} names no utterance of the four emotions whose audio is in sentences/wav")
    return rows


def source_of(rows: Rows) -> str:
    """Return the digest that SUPERB's lists are made from: the utterances of all sessions and their emotions."""
    return digest(item for number, listed in rows.items() for row in listed for item in (number, *row.values()))


def source_on_disk(root: Path) -> str | None:
    """Return the digest of the evaluations and the audio on disk; None if a session has no evaluations."""
    found = sessions(root)
    if not found or not all(_evaluations(root, session).is_dir() for session in found):
        return None
    return source_of({session: read_emotions(root, session) for session in found})


def _evaluations(root: Path, session: int) -> Path:
    return root / f"Session{session}" / "dialog" / "EmoEvaluation"
