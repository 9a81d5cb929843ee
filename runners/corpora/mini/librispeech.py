"""ASR and PR: utterances and transcripts in the layout of LibriSpeech, with s3prl's lists of lengths and a lexicon."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from runners.corpora.mini.clips import Clip
from runners.corpora.mini.speech import Utterance, shuffled, take
from runners.corpora.mini.text import VOCABULARY, Lexicon
from runners.corpora.published import LIBRISPEECH_SETS
from upstreams.files import atomic_write

# A CTC head on 40 ms frames emits at most 25 symbols/s, blanks between doubled letters included. Below 3 symbols/s
# most of a recording is not its text.
_SYMBOLS_A_SECOND = (3.0, 20.0)
_AT_LEAST = {"train": 32, "dev": 4, "test": 6}


def usable(utterance: Utterance) -> bool:
    """True if a CTC head can learn the utterance: text and speaker are known, and the text fits the duration."""
    if utterance.text is None or utterance.role is None:
        return False
    doubled = sum(a == b for a, b in zip(utterance.text, utterance.text[1:], strict=False))
    slowest, fastest = _SYMBOLS_A_SECOND
    return slowest <= (len(utterance.text) + doubled) / utterance.seconds <= fastest


def plan(utterances: list[Utterance], seconds: dict[str, float], seed: int) -> list[Clip]:
    """Plan clips of about `seconds[split]` for each split. A speaker is in one split only."""
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
                    ("asr", "pr"),
                    split,
                    utterance.speaker,
                    utterance.text,
                )
            )
    return clips


def write(root: Path, clips: list[Clip], samples: dict[str, int], lexicon: Lexicon) -> None:
    """Write the transcripts beside the audio, len_for_bucket/*.csv, lexicon/librispeech-lexicon.txt and phoneme.txt."""
    transcripts: dict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        path = root / clip.path
        speaker, chapter, _ = path.stem.split("-")
        transcripts[path.parent / f"{speaker}-{chapter}.trans.txt"].append(f"{path.stem} {clip.label}\n")
    for path, lines in transcripts.items():
        with atomic_write(path) as temporary:
            temporary.write_text("".join(sorted(lines)), encoding="utf-8")
    for split, folder in LIBRISPEECH_SETS.items():
        paths = [clip.path for clip in clips if clip.split == split]
        paths.sort(key=lambda path: (-samples[path], path))
        rows = [f"{row},{path.removeprefix('LibriSpeech/')},{samples[path]},\n" for row, path in enumerate(paths)]
        with atomic_write(root / "len_for_bucket" / f"{folder}.csv") as temporary:
            temporary.write_text(",file_path,length,label\n" + "".join(rows), encoding="utf-8")
    words = sorted({word for clip in clips for word in clip.label.split()})
    with atomic_write(root / "lexicon" / "librispeech-lexicon.txt") as temporary:
        temporary.write_text("".join(f"{word} {' '.join(lexicon[word])}\n" for word in words), encoding="utf-8")
    with atomic_write(root / "lexicon" / "phoneme.txt") as temporary:
        temporary.write_text("\n".join(VOCABULARY), encoding="utf-8")
