"""Splits of the embedded corpora, and their synthesis."""

from __future__ import annotations

import ctypes
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from runners.corpora.mini import librispeech, pretraining, voxceleb
from runners.corpora.mini.clips import Clip
from runners.corpora.mini.speakers import VOICES, Speaker, emotional_speakers, pseudo_speakers
from runners.corpora.mini.speech import Utterance, round_robin, shuffled, take
from runners.corpora.mini.synthesis import Noise, Synthesis, coloured_noise

SILENCE = Noise((0,), 16, 0.0)


def utterance(name: str, speaker: str | None, session: str, role: str | None = "train", **other) -> Utterance:
    fields = {"seconds": 2.0, "text": "THE OLD HOUSE", **other}
    return Utterance(name, SILENCE, fields["seconds"], speaker, session, role, fields["text"])


def dialogues(counts: dict[str, int], speaker: str = "BOB") -> list[Utterance]:
    return [
        utterance(f"{speaker}-{session}-{index}", speaker, session)
        for session, count in counts.items()
        for index in range(count)
    ]


def split_of(counts: dict[str, int]) -> dict[str, str]:
    return {session: split for (_, session), split in voxceleb.split_sessions(dialogues(counts)).items()}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 40, "b": 30}, {"a": "train", "b": "test"}),
        ({"a": 90, "b": 12, "c": 17, "d": 9}, {"a": "train", "b": "test", "c": "test", "d": "dev"}),
        ({"a": 51}, {}),  # one dialogue cannot be in two splits
        ({"a": 20, "b": 20}, {}),  # too few lines
    ],
)
def test_a_dialogue_is_in_one_split(counts, expected):
    assert split_of(counts) == expected


def test_sid_splits_share_no_dialogue_and_are_balanced_over_speakers():
    utterances = dialogues({"a": 90, "b": 30, "c": 9}, "BOB") + dialogues({"d": 40, "e": 28}, "TAM")
    utterances += [utterance("short", "BOB", "b", seconds=0.6), utterance("cut", None, "c10a")]
    clips, sessions = voxceleb.plan(utterances, {"train": 100.0, "dev": 10.0, "test": 60.0}, 0)
    for split, count in (("train", 50), ("dev", 5), ("test", 30)):
        assert sum(clip.split == split for clip in clips) == count
    train = [clip.speaker for clip in clips if clip.split == "train"]
    assert train.count("BOB") == train.count("TAM") == 25
    videos = {
        split: {c.path.rsplit("/", 1)[0] for c in clips if c.split == split} for split in ("train", "dev", "test")
    }
    assert not videos["train"] & videos["test"] and not videos["dev"] & (videos["train"] | videos["test"])
    assert len({clip.path for clip in clips}) == len(clips)
    assert {clip.label for clip in clips} == {"id10001", "id10002"}
    assert sessions["BOB", "b"] == "test"


def test_asr_speakers_are_in_one_split_and_texts_fit_their_durations():
    utterances = [utterance(f"t{i}", "JOE", "bob1") for i in range(50)]
    utterances += [utterance(f"e{i}", "FRANK", "frank", "test") for i in range(9)]
    utterances += [utterance(f"d{i}", "IAN", "ian1", "dev") for i in range(9)]
    bad = [
        utterance("fast", "JOE", "bob1", seconds=0.6),
        utterance("slow", "JOE", "bob1", text="NO"),
        utterance("untranscribed", "JOE", "bob1", text=None),
        utterance("unknown", None, "c10a", None),
    ]
    clips = librispeech.plan([*bad, *utterances], {"train": 1e6, "dev": 1e6, "test": 1e6}, 0)
    assert {clip.recording for clip in clips} == {u.recording for u in utterances}
    speakers = {split: {c.path.split("/")[2] for c in clips if c.split == split} for split in ("train", "dev", "test")}
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) == 3


def test_pretraining_uses_nothing_that_is_held_out():
    utterances = dialogues({"a": 60, "b": 30, "c": 9}, "BOB")
    utterances += [utterance(f"frank{i}", "FRANK", "frank", "test") for i in range(5)]
    utterances += [utterance(f"cut{i}", None, "c10a", None, text=None) for i in range(5)]
    clips, sessions = voxceleb.plan(utterances, {"train": 20.0, "dev": 2.0, "test": 4.0}, 0)
    command = Clip("ic/1.wav", "ic/1.wav", SILENCE, ("ic",), "train", "x")
    emotion = Clip("er/1.wav", "er/1.wav", SILENCE, ("er",), "session2", "x")
    tested = Clip("ic/2.wav", "ic/2.wav", SILENCE, ("ic",), "test", "x")
    tasks = [*clips, command, emotion, tested]
    held = pretraining.held_out(utterances, tasks, sessions)
    planned = pretraining.plan(utterances, tasks, held, 1e6, 0)
    recordings = [clip.recording for clip in planned]
    # The whole of BOB's test and dev dialogues is held out, though few of their lines are in the splits.
    expected = {u.recording for u in utterances if u.speaker is None or u.session == "a"} | {"ic/1.wav"}
    assert set(recordings) == expected and len(recordings) == len(expected)
    shared = {clip.path for clip in planned if clip.path.startswith("VoxCeleb1")}
    assert len(shared) == 10  # a recording that is a clip of a task is not written twice
    few = pretraining.plan(utterances, tasks, held, 20.0, 0)
    assert len(few) == 10 + 1


def test_selection_depends_only_on_names_and_seed():
    utterances = dialogues({"a": 30, "b": 10})
    assert shuffled(utterances, [1]) == shuffled(reversed(utterances), [1]) != shuffled(utterances, [2])
    assert len(take(utterances, 7.0, 0)) == 4 and len(take(utterances, 7.0, 6)) == 6 and take([], 7.0, 6) == []
    mixed = round_robin([*dialogues({"a": 3}, "A"), *dialogues({"b": 1}, "B")])
    assert [u.speaker for u in mixed] == ["A", "B", "A", "A"] and round_robin([]) == []


def test_pseudo_speakers_are_in_disjoint_splits_with_other_vocal_tracts():
    splits = pseudo_speakers(VOICES)
    assert {split: len(members) for split, members in splits.items()} == {"train": 180, "dev": 60, "test": 60}
    assert len({speaker.name for members in splits.values() for speaker in members}) == 300
    assert all({speaker.voice for speaker in members} == set(VOICES) for members in splits.values())
    tracts = {split: {(s.voice, s.warp) for s in members} for split, members in splits.items()}
    assert not tracts["train"] & tracts["dev"] and not tracts["test"] & (tracts["train"] | tracts["dev"])
    warps = {voice: sorted(s.warp for s in splits["train"] if s.voice == voice) for voice in VOICES}
    assert all(
        min(abs(speaker.warp / warp - 1) for warp in warps[speaker.voice]) > 0.039
        for split in ("dev", "test")
        for speaker in splits[split]
    )
    emotional = {speaker for session in emotional_speakers() for speaker in session}
    assert len(emotional) == 10 and not {s.warp for s in emotional} & {s.warp for s in splits["train"]}


def speaker(voice: str) -> Speaker:
    return next(who for who in pseudo_speakers(VOICES)["train"] if who.voice == voice)


def repeat_after_other_words() -> tuple[np.ndarray, np.ndarray]:
    utterance = Synthesis(speaker("en-US"), "turn on the lights", (1, 2))
    first = utterance.waveform()
    for voice, text in (("fr-FR", "hello there " * 8), ("de-DE", "stop")):
        Synthesis(speaker(voice), text, (3,)).waveform()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    mallopt(-6, 0x55)  # M_PERTURB: malloc returns memory full of 0xAA, as it may on a used heap
    return first, utterance.waveform()


def test_synthesis_repeats_bit_for_bit_after_other_utterances():
    # In a new process, like the build's workers, since other tests have changed the heap of this one.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        first, again = worker.submit(repeat_after_other_words).result()
    assert np.array_equal(again, first)
    assert first.dtype == np.float32 and 0.05 < np.abs(first).max() <= 1
    other = Synthesis(speaker("en-US"), "turn on the lights", (1, 3)).waveform()
    assert len(other) != len(first) or not np.allclose(other, first)
    word = Synthesis(speaker("es-ES"), "sheila and marvin and sheila", (4,), samples=16_000).waveform()
    assert word.shape == (16_000,)


def test_noise_has_the_requested_spectrum():
    power = {}
    for colour in (0.0, 2.0):
        noise = coloured_noise(np.random.default_rng(0), 32_000, colour)
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        power[colour] = spectrum[200:2000].mean() / spectrum[8000:].mean()
        assert abs(noise.std() - 1) < 0.01
    assert 0.5 < power[0.0] < 2 and power[2.0] > 50
