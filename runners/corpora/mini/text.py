"""Transcripts in the style of LibriSpeech, and the pronunciation lexicon."""

from __future__ import annotations

import re
from pathlib import Path

# CMUdict's 39 phones without stress. s3prl's vocabulary of phonemes begins with SIL and SPN.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
PHONES = tuple(sorted(f"{_VOWELS} {_CONSONANTS}".split()))
VOCABULARY = ("SIL", "SPN", *PHONES)

Lexicon = dict[str, list[str]]


def load_lexicon() -> Lexicon:
    """Return upper-case word -> phones of its first pronunciation, from the CMU dictionary in pocketsphinx."""
    import pocketsphinx

    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    lexicon: Lexicon = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        # A further pronunciation is written word(2). s3prl, too, uses the first one only.
        if "(" not in word:
            lexicon.setdefault(word.upper(), phones)
    return lexicon


def normalise(text: str, lexicon: Lexicon) -> str | None:
    """Return `text` in capitals and apostrophes only, or None if its pronunciation is uncertain.

    That is so for digits and symbols that are spoken as words, for stage directions in brackets, and for words that
    the lexicon lacks.

    >>> normalise("Okay - let's GO!", {"OKAY": [], "LET'S": [], "GO": []})
    "OKAY LET'S GO"
    """
    text = text.upper().replace("^_", " ")  # the game's trade mark sign
    if re.search(r"[0-9()<>\[\]#$&^_*%@+=/]", text):
        return None
    words = []
    for word in re.sub(r"[^A-Z']+", " ", text).split():
        # An apostrophe at a word's edge is a quotation mark, unless the lexicon has the word with it ('TIL).
        known = next((w for w in (word, word.strip("'")) if w in lexicon), None)
        if known is None:
            return None
        words.append(known)
    return " ".join(words) or None
