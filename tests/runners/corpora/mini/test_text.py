"""Transcripts, lexicon, and texts of the pseudo-speakers."""

from __future__ import annotations

import numpy as np
import pytest

from runners.corpora.mini import sentences
from runners.corpora.mini.text import PHONES, VOCABULARY, load_lexicon, normalise

LEXICON = load_lexicon()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Okay, I got it... it\'s "KING COLE"', "OKAY I GOT IT IT'S KING COLE"),
        ("A half-witted bush pilot.", "A HALF WITTED BUSH PILOT"),
        ("'Til the end of 'time'", "'TIL THE END OF TIME"),
        ("The Super Soldier Treatment^_ works", "THE SUPER SOLDIER TREATMENT WORKS"),
        ("(sigh)", None),
        ("the 24 Hour Store", None),
        ("R&D", None),
        ("FRRBLT the door", None),
        ("...", None),
        ("", None),
    ],
)
def test_normalise(text, expected):
    assert normalise(text, LEXICON) == expected


def test_the_lexicon_has_39_phones_and_first_pronunciations():
    assert {phone for phones in LEXICON.values() for phone in phones} == set(PHONES)
    assert len(PHONES) == 39 and VOCABULARY[:2] == ("SIL", "SPN")
    assert LEXICON["THE"] == ["DH", "AH"] and not any("(" in word for word in LEXICON)


def test_the_lexicon_has_all_words_that_are_synthesised_for_asr_and_pr():
    rng = np.random.default_rng(0)
    texts = [sentences.free_sentence(rng) for _ in range(3000)]
    assert all(normalise(text, LEXICON) == text.upper() for text in texts)
    assert len(set(texts)) > 2000


def test_every_intent_has_complete_wordings():
    rng = np.random.default_rng(0)
    assert len(set(sentences.INTENTS)) == 31
    texts = {intent: {sentences.command(intent, rng) for _ in range(50)} for intent in sentences.INTENTS}
    assert all(len(wordings) >= 3 and not any("{" in text for text in wordings) for wordings in texts.values())
    # A wording belongs to one intent, so that the words determine action, object and location.
    every = [text for wordings in texts.values() for text in wordings]
    assert len(every) == len(set(every))


def test_requests_have_a_slot_for_each_word():
    rng = np.random.default_rng(0)
    for _ in range(500):
        request = sentences.request(rng)
        assert len(request.words) == len(request.slots)
        assert set(request.slots) - {"O"} <= set(sentences.SLOTS) and set(request.slots) != {"O"}
        assert not any(character in word for word in request.words for character in ":;[]")
