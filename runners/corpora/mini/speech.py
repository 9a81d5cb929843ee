"""The utterances that ASR, PR and SID are laid out from: the game's lines, or synthesis where there is no game."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runners.corpora.mini import queen, sentences
from runners.corpora.mini.clips import GameLine, Source
from runners.corpora.mini.synthesis import ENGLISH, Synthesis, pseudo_speakers
from runners.corpora.mini.text import Lexicon, normalise

SHORTEST, LONGEST = 0.5, 15.0
_ROOMS = 6
_SENTENCE_SECONDS = 3.0
# Characters with fewer than 60 lines: too little for SID, so they can be new to ASR, PR and the pre-training.
_UNSEEN = {
    "FRANK": "test", "LOLA": "test", "AND": "test", "SHOWERAM": "test",
    "IAN": "dev", "CHEF": "dev", "JOHN": "dev", "WEDGE": "dev", "DOG": "dev",
}  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """A recording that a task may use. `session` holds what was recorded together; None is unknown.

    role: the split of LibriSpeech that the speaker belongs to, None where the speaker is unknown.
    """

    recording: str
    source: Source
    seconds: float
    speaker: str | None
    session: str
    role: str | None
    text: str | None


def game_utterances(container: Path, lexicon: Lexicon) -> list[Utterance]:
    """Every voice file of the game between 0.5 and 15 s, with its duration read from the stream."""
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
    """About `hours` of free sentences by the pseudo-speakers, each speaker in six rooms, which are its sessions.

    Takes the game's place where it cannot be had. Only the English voices have a role in LibriSpeech's layout: the
    others do not pronounce as the lexicon does. Durations are estimates.
    """
    rng = np.random.default_rng([seed, 10])
    members = [(speaker, role) for role, group in pseudo_speakers().items() for speaker in group]
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
    """The utterances in a random order that depends on their names and the seed only."""
    ordered = sorted(utterances, key=lambda utterance: utterance.recording)
    return [ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))]


def take(utterances: Iterable[Utterance], seconds: float, at_least: int) -> list[Utterance]:
    """The first utterances that together last `seconds`; more where `at_least` asks for it."""
    taken: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        if total >= seconds and len(taken) >= at_least:
            break
        taken.append(utterance)
        total += utterance.seconds
    return taken


def round_robin(utterances: Iterable[Utterance]) -> list[Utterance]:
    """The utterances so ordered that every prefix holds as even a share of each speaker as there is."""
    queues: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        queues[utterance.speaker or ""].append(utterance)
    ordered = []
    for turn in range(max(map(len, queues.values()), default=0)):
        ordered += [queue[turn] for _, queue in sorted(queues.items()) if turn < len(queue)]
    return ordered
