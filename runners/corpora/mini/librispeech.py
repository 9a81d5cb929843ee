"""PR and ASR: utterances and transcripts in the layout of LibriSpeech, with s3prl's lists of lengths and a lexicon.

PR's sets have LibriSpeech's names and hold real speech, if there is any. An hour of it is too little to learn words
from letters, so ASR has synthetic sets of its own: sentences of a small vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.sentences import simple_sentence
from runners.corpora.mini.speakers import pseudo_speakers
from runners.corpora.mini.speech import Utterance, shuffled, take
from runners.corpora.mini.synthesis import Synthesis
from runners.corpora.mini.text import VOCABULARY, Lexicon
from runners.corpora.published import LIBRISPEECH_SETS
from upstreams.files import atomic_write

# A CTC head on 40 ms frames emits at most 25 symbols/s, blanks between doubled letters included. Below 3 symbols/s
# most of a recording is not its text.
_SYMBOLS_A_SECOND = (3.0, 20.0)
# ASR's sets.
SYNTHETIC_SETS = {"train": "train-synthetic", "dev": "dev-synthetic", "test": "test-synthetic"}
_AT_LEAST = {"train": 32, "dev": 4, "test": 6}


def usable(utterance: Utterance) -> bool:
    """True if a CTC head can learn the utterance: text and speaker are known, and the text fits the duration."""
    if utterance.text is None or utterance.role is None:
        return False
    doubled = sum(a == b for a, b in zip(utterance.text, utterance.text[1:], strict=False))
    slowest, fastest = _SYMBOLS_A_SECOND
    return slowest <= (len(utterance.text) + doubled) / utterance.seconds <= fastest


def plan(utterances: list[Utterance], seconds: dict[str, float], seed: int) -> list[Clip]:
    """Plan PR's clips of about `seconds[split]` for each split. A speaker is in one split only."""
    speakers = sorted({u.speaker for u in utterances if u.speaker})
    sessions = sorted({u.session for u in utterances})
    clips = []
    for split, folder in LIBRISPEECH_SETS.items():
        candidates = shuffled((u for u in utterances if u.role == split and usable(u)), [seed, 20])
        numbers: dict[tuple[int, int], int] = defaultdict(int)
        for utterance in take(candidates, seconds[split], _AT_LEAST[split]):
            assert utterance.speaker is not None and utterance.text is not None
            speaker = 1001 + speakers.index(utterance.speaker)
            chapter = 100001 + sessions.index(utterance.session)
            number = numbers[speaker, chapter]
            numbers[speaker, chapter] += 1
            clips.append(
                Clip(
                    f"LibriSpeech/{folder}/{speaker}/{chapter}/{speaker}-{chapter}-{number:04d}.flac",
                    utterance.recording,
                    utterance.source,
                    ("pr",),
                    split,
                    utterance.speaker,
                    utterance.text,
                )
            )
    return clips


def plan_synthetic(counts: dict[str, int], seed: int) -> list[Clip]:
    """Plan ASR's clips: `counts[split]` sentences for each split."""
    clips: list[Clip] = []
    first = 9001  # speaker number
    for split, speakers in pseudo_speakers().items():
        rng = np.random.default_rng([seed, 21, len(clips)])
        for index in range(counts[split]):
            which = int(rng.integers(len(speakers)))
            text = simple_sentence(rng)
            folder = f"{first + which}/1"
            path = f"LibriSpeech/{SYNTHETIC_SETS[split]}/{folder}/{folder.replace('/', '-')}-{index:04d}.flac"
            source = Synthesis(speakers[which], text, (seed, 22, len(clips)))
            clips.append(Clip(path, path, source, ("asr",), split, speakers[which].name, text.upper()))
        first += len(speakers)
    return clips


def write(root: Path, clips: list[Clip], samples: dict[str, int], lexicon: Lexicon) -> None:
    """Write the transcripts beside the audio, and len_for_bucket/*.csv.

    Write lexicon/librispeech-lexicon.txt and phoneme.txt for the words of PR.
    """
    transcripts: dict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        path = root / clip.path
        speaker, chapter, _ = path.stem.split("-")
        transcripts[path.parent / f"{speaker}-{chapter}.trans.txt"].append(f"{path.stem} {clip.label}\n")
    for path, lines in transcripts.items():
        with atomic_write(path) as temporary:
            temporary.write_text("".join(sorted(lines)), encoding="utf-8")
    for folder in (*LIBRISPEECH_SETS.values(), *SYNTHETIC_SETS.values()):
        paths = [clip.path for clip in clips if clip.path.startswith(f"LibriSpeech/{folder}/")]
        paths.sort(key=lambda path: (-samples[path], path))
        rows = [f"{row},{path.removeprefix('LibriSpeech/')},{samples[path]},\n" for row, path in enumerate(paths)]
        with atomic_write(root / "len_for_bucket" / f"{folder}.csv") as temporary:
            temporary.write_text(",file_path,length,label\n" + "".join(rows), encoding="utf-8")
    words = sorted({word for clip in clips if "pr" in clip.tasks for word in clip.label.split()})
    with atomic_write(root / "lexicon" / "librispeech-lexicon.txt") as temporary:
        temporary.write_text("".join(f"{word} {' '.join(lexicon[word])}\n" for word in words), encoding="utf-8")
    with atomic_write(root / "lexicon" / "phoneme.txt") as temporary:
        temporary.write_text("\n".join(VOCABULARY), encoding="utf-8")
