"""The utterances that ASR, PR and SID are laid out from: the game's lines, or synthesis where there is no game."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runners.corpora import queen, sentences
from runners.corpora.clips import GameLine, Source
from runners.corpora.synthesis import ENGLISH, Speaker, Synthesis, pseudo_speakers
from runners.corpora.text import Lexicon, normalise

SHORTEST, LONGEST = 0.5, 15.0
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
        found.append(
            Utterance(recording, GameLine(container, line), seconds, line.speaker, session, role, text)
        )
    return found


def synthetic_utterances(seed: int, hours: float, lexicon: Lexicon) -> list[Utterance]:
    """Free sentences by the English pseudo-speakers, about `hours` long, each in one of six rooms.

    Takes the game's place where it cannot be had. Only the English voices: the others do not follow the lexicon.
    """
    rng = np.random.default_rng([seed, 10])
    speakers = [
        (speaker, role) for role, members in pseudo_speakers(ENGLISH).items() for speaker in members
    ]
    seconds = 3.0
    each = max(12, round(hours * 3600 / seconds / len(speakers)))
    found = []
    for speaker, role in speakers:
        for number in range(each):
            text = sentences.free_sentence(rng)
            found.append(_synthetic(speaker, role, number, text, seed, seconds, lexicon))
    return found


def _synthetic(
    speaker: Speaker, role: str, number: int, text: str, seed: int, seconds: float, lexicon: Lexicon
) -> Utterance:
    voice = [*ENGLISH].index(speaker.voice) * 10 + speaker.warp
    room = number % 6
    source = Synthesis(speaker, text, (seed, 11, voice, number), room=(seed, 12, voice, room))
    name = f"synthesis/{speaker.name.lower()}-{number:05d}"
    return Utterance(name, source, seconds, speaker.name, f"room{room}", role, normalise(text, lexicon))


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
