"""Utterances for ASR, PR and SID: lines of the game, or synthesis if the game is not available."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runners.corpora.mini import queen, sentences
from runners.corpora.mini.clips import GameLine, Source
from runners.corpora.mini.speakers import ENGLISH, VOICES, pseudo_speakers
from runners.corpora.mini.synthesis import Synthesis
from runners.corpora.mini.text import Lexicon, normalise

SHORTEST, LONGEST = 0.5, 15.0  # s
_ROOMS = 6
_SENTENCE_SECONDS = 3.0
# Characters with fewer than 60 lines: too few for SID, so ASR, PR and pre-training can hold them out.
_UNSEEN = {
    "FRANK": "test", "LOLA": "test", "AND": "test", "SHOWERAM": "test",
    "IAN": "dev", "CHEF": "dev", "JOHN": "dev", "WEDGE": "dev", "DOG": "dev",
}  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """A recording that tasks may use; speaker and text are None if unknown.

    session: name shared by recordings that were made together. role: the speaker's split in LibriSpeech's layout, None
    if the speaker is unknown or not in it.
    """

    recording: str
    source: Source
    seconds: float
    speaker: str | None
    session: str
    role: str | None
    text: str | None


def game_utterances(container: Path, lexicon: Lexicon) -> list[Utterance]:
    """Return every voice file of the game between 0.5 and 15 s, with the duration of its stream."""
    import soundfile

    data = container.read_bytes()
    found = []
    for line in queen.read_container(container):
        header = soundfile.info(io.BytesIO(data[line.offset : line.offset + line.size]))
        seconds = header.frames / header.samplerate
        if not SHORTEST <= seconds <= LONGEST:
            continue
        role = None if line.speaker is None else _UNSEEN.get(line.speaker, "train")
        text = None if line.text is None else normalise(line.text, lexicon)
        session = (line.dialogue or "none").partition(".")[0].lower()
        recording = "game/" + line.name.partition(".")[0].lower()
        found.append(Utterance(recording, GameLine(container, line), seconds, line.speaker, session, role, text))
    return found


def synthetic_utterances(seed: int, hours: float, lexicon: Lexicon) -> list[Utterance]:
    """Return about `hours` of free sentences by the pseudo-speakers of one manner, in place of the game's lines.

    Each speaker speaks in six rooms, which are its sessions. Only the English voices have a role in LibriSpeech's
    layout, since the others do not pronounce words as in the lexicon. Durations are estimates.
    """
    rng = np.random.default_rng([seed, 10])
    members = [(who, role) for role, group in pseudo_speakers(VOICES).items() for who in group if who.manner == "a"]
    each = max(_ROOMS * 12, round(hours * 3600 / _SENTENCE_SECONDS / len(members)))
    found = []
    for index, (speaker, role) in enumerate(members):
        for number in range(each):
            text = sentences.free_sentence(rng)
            room = number % _ROOMS
            source = Synthesis(speaker, text, (seed, 11, index, number), room=(seed, 12, index, room))
            found.append(
                Utterance(
                    f"synthesis/{speaker.name.lower()}-{number:05d}",
                    source,
                    0.6 + len(text) / 14,
                    speaker.name,
                    f"room{room}",
                    role if speaker.voice in ENGLISH else None,
                    normalise(text, lexicon),
                )
            )
    return found


def shuffled(utterances: Iterable[Utterance], seed: Sequence[int]) -> list[Utterance]:
    """Return the utterances in a random order, which is a function of their names and the seed."""
    ordered = sorted(utterances, key=lambda utterance: utterance.recording)
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def take(utterances: Iterable[Utterance], seconds: float, at_least: int) -> list[Utterance]:
    """Return the first utterances that together last `seconds`, but not fewer than `at_least` if there are so many."""
    taken: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        if total >= seconds and len(taken) >= at_least:
            break
        taken.append(utterance)
        total += utterance.seconds
    return taken


def round_robin(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Return the utterances in turns of the speakers, so that any first part is as balanced as possible."""
    queues: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        queues[utterance.speaker or ""].append(utterance)
    ordered = []
    for turn in range(max(map(len, queues.values()), default=0)):
        ordered += [queue[turn] for _, queue in sorted(queues.items()) if turn < len(queue)]
    return ordered
