"""`superbit corpus check`: what s3prl would score wrongly, drop or fail on is named; what is harmless is accepted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runners.corpora.published import LIBRISPEECH_SETS
from tests.runners.corpora.test_published import refused, superbit
from upstreams.errors import UserError

LIBRI = "LibriSpeech/test-clean/102/2"
TRANS = f"{LIBRI}/102-2.trans.txt"
LIST = "len_for_bucket/test-clean.csv"
FSC = "fluent_speech_commands_dataset"
IEMOCAP = "IEMOCAP/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F00"
MORE = ("qbe", "asv", "sd")
# The last file of each task that s3prl opens, or one that it opens only when it evaluates.
AUDIO = {
    "asr": f"{LIBRI}/102-2-0002.flac",
    "pr": f"{LIBRI}/102-2-0001.flac",
    "ks": "speech_commands_test_set_v0.01/_silence_/0a0b0c0d_nohash_0.wav",
    "sid": "VoxCeleb1/test/wav/id10270/video3/00001.wav",
    "er": f"{IEMOCAP}5.wav",
    "ic": f"{FSC}/wavs/speakers/testspeaker/3.wav",
    "sf": "SNIPS/test/Brian-snips-test-2.wav",
    "qbe": "quesst14Database/eval_queries/quesst14_eval_0001.wav",
    "asv": "VoxCeleb1/dev/wav/id10002/video1/00001.wav",
    "sd": "Libri2Mix_diarization/wav/test1.wav",
}
PARTS = {
    "asr": ("LibriSpeech", "len_for_bucket"),
    "pr": ("LibriSpeech", "lexicon"),
    "ks": ("speech_commands_v0.01", "speech_commands_test_set_v0.01"),
    "sd": ("Libri2Mix_diarization",),
} | {task: (AUDIO[task].partition("/")[0],) for task in ("sid", "er", "ic", "sf", "qbe", "asv")}
Damage = Callable[[Path], None]


@pytest.fixture
def corpora(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of what the test's task reads."""
    task = request.node.callspec.params["task"]
    source = request.getfixturevalue("more_tiny_corpora" if task in MORE else "tiny_corpora")
    for part in PARTS[task]:
        shutil.copytree(source / part, tmp_path / "corpora" / part)
    for listing in (tmp_path / "corpora").glob("Libri2Mix_diarization/*/wav.scp"):
        listing.write_text(listing.read_text().replace(str(source), str(tmp_path / "corpora")))
    return tmp_path / "corpora"


def sound(seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Callable[[Path], None]:
    return lambda file: soundfile.write(file, np.full((round(seconds * rate), channels), 0.1, np.float32), rate)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])


def state_length(length: int) -> Callable[[Path], None]:
    """Return a change of the length that a WAV file's header states, in bytes."""

    def change(file: Path) -> None:
        content = file.read_bytes()
        at = content.index(b"data") + 4
        file.write_bytes(content[:at] + length.to_bytes(4, "little") + content[at + 4 :])

    return change


ANY_RATE = ("ks", "qbe", "asv")  # s3prl resamples each file, and takes the mean of its channels
BAD_AUDIO = [
    *((task, sound(rate=8000), "8000 Hz and 1 channels: 16000 Hz mono") for task in AUDIO if task not in ANY_RATE),
    *((task, sound(channels=2), "16000 Hz and 2 channels") for task in AUDIO if task not in ANY_RATE),
    *((task, sound(rate=44_100), "44100 Hz") for task in ("asr", "sid")),
    *((task, sound(seconds=0.01), r"is 0\.010 s long: an upstream needs at least 0\.025 s") for task in AUDIO),
    *((task, cut, "cannot read the audio file .*: ") for task in AUDIO),
    ("er", sound(seconds=0), "cannot read the audio file .*: it holds no samples"),
    ("ic", state_length(1000), "its header states 500 samples, but more follow"),
    ("sid", state_length(0xFFFFFFFF), r"its header states \d+ samples, but the file holds \d+"),
    ("sf", state_length(0), "its header states 0 samples, but more follow"),
]


@pytest.mark.parametrize(("task", "damage", "message"), BAD_AUDIO)
def test_a_file_that_would_be_misread_is_named(task: str, damage: Damage, message: str, corpora: Path) -> None:
    damage(corpora / AUDIO[task])
    said = refused(superbit("check", task, corpora, "--any-size"))
    assert re.search(message, said) and AUDIO[task] in said and "\n" not in said


@pytest.mark.parametrize("task", ["asr", "pr", "sf"])
def test_a_test_set_that_would_be_misread_is_named_before_the_training(
    task: str, corpora: Path, tmp_path: Path
) -> None:
    """s3prl opens the test set of these tasks only when the whole training has ended."""
    from tests.runners.downstream.experiments import train

    sound(rate=8000)(corpora / AUDIO[task])
    with pytest.raises(UserError, match=f"{AUDIO[task]} has 8000 Hz"):
        train(task, corpora, tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


def edit(name: str, change: Callable[[str], str]) -> Damage:
    return lambda root: (root / name).write_bytes(change((root / name).read_bytes().decode()).encode())


def replace(name: str, old: str, new: str) -> Damage:
    return edit(name, lambda text: text.replace(old, new, 1))


def latin(name: str) -> Damage:
    return lambda root: (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\xe9\n", 1))


def twice(name: str) -> Damage:
    return edit(name, lambda text: text + text.splitlines(keepends=True)[-1])


def drop_line(name: str) -> Damage:
    return edit(name, lambda text: "".join(text.splitlines(keepends=True)[:-1]))


def remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def copy(name: str, other: str) -> Damage:
    return lambda root: shutil.copy(root / name, root / other)


def rename(name: str, new: str) -> Damage:
    return lambda root: (root / name).rename((root / name).with_name(new)) and None


def er_row_twice(root: Path) -> None:
    path = root / "IEMOCAP/meta_data/Session1/test_meta_data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"meta_data": [*content["meta_data"], content["meta_data"][0]]}))


IOB, CSV, SID = "SNIPS/all.iob.snips.txt", f"{FSC}/data/test_data.csv", "VoxCeleb1/veri_test_class.txt"
MIX, QBE = "Libri2Mix_diarization/test", "quesst14Database/scoring/language_key_eval.lst"
BAD_TEXT = [
    ("asr", replace(TRANS, "A DOG", "A D0G"), r"102-2-0001\.flac has the character '0', which is not in .*char\.dict"),
    ("asr", replace(TRANS, "A DOG", "A DÓG"), "has the character 'Ó'"),
    ("asr", replace(TRANS, "A DOG", "A DOG."), r"has the character '\.'"),
    ("pr", replace(TRANS, "A DOG", "a dog"), "the lexicon lacks the word"),
    ("sf", replace(IOB, "PLAY JAZZ NOW", "play jazz now"), "has the character 'p', which is not in the vocabulary"),
    ("sf", replace(IOB, "Brian-snips-test-2 BOS PLAY QUEEN", "Brian-snips-test-2 BOS PLAY U2"), "the character '2'"),
    *((task, drop_line(TRANS), r"102-2-0002\.flac has no line in 102-2\.trans\.txt") for task in ("asr", "pr")),
    *((task, twice(TRANS), "102-2-0002 has a transcript above") for task in ("asr", "pr")),
    *((task, replace(TRANS, "A DOG", ""), "line 2: 102-2-0001 has no words") for task in ("asr", "pr")),
    *((task, latin(TRANS), r"line 1 of .*102-2\.trans\.txt is not UTF-8 at byte \d+") for task in ("asr", "pr")),
    *((task, replace(TRANS, "102-2-0001", "102-2-0009"), "102-2-0001.flac has no line") for task in ("asr", "pr")),
    *((task, edit(TRANS, lambda text: f"{text}102-2-0009 A\n"), "line for 102-2-0009, but") for task in ("asr", "pr")),
    ("pr", remove(f"{LIBRI}/102-2-0002.flac"), r"102-2\.trans\.txt has a line for 102-2-0002, but there is no such"),
    ("pr", copy(AUDIO["pr"], f"{LIBRI}/102-2-0003.flac"), r"102-2-0003\.flac has no line"),
    ("pr", copy(AUDIO["pr"], "LibriSpeech/test-clean/102/1/102-2-0001.flac"), r"102-2-0001\.flac has no line"),
    ("asr", twice(LIST), r"test-clean\.csv lists .* twice"),
    ("asr", drop_line(LIST), r"csv is stale: it does not list .*; delete it, then `superbit corpus prepare asr`"),
    ("asr", latin(LIST), r"line 1 of .*test-clean\.csv is not UTF-8 at byte \d+"),
    ("asr", edit(LIST, lambda text: re.sub(r",(\d+),", r",1\1,", text)), "is stale: it gives 1"),
    ("ic", twice(CSV), r"lists wavs/speakers/testspeaker/3\.wav twice"),
    ("ic", latin(CSV), "line 1 of .*test_data.csv is not UTF-8"),
    ("ic", replace(CSV, "kitchen", ""), "line 2: the column 'location' is empty"),
    ("sid", twice(SID), "lists id10270/video3/00001.wav twice"),
    ("sid", latin(SID), "line 1 of .* is not UTF-8"),
    ("sid", edit(SID, lambda text: "\ufeff" + text), "begins with a byte-order mark"),
    ("sid", edit(SID, lambda text: text.replace("\n", "\n\n", 1)), "line 2: expected"),
    ("sid", replace(SID, "video0/00001.wav", "video 0/00001.wav"), "line 1: expected"),
    ("er", er_row_twice, "test_meta_data.json lists .* twice"),
    ("sf", twice(IOB), "Brian-snips-test-2 has a sentence above"),
    ("sf", latin(IOB), "line 1 of .* is not UTF-8"),
    ("sf", drop_line(IOB), r"Brian-snips-test-2\.wav has no line in .*all\.iob\.snips\.txt"),
    ("sf", remove(AUDIO["sf"]), "lists Brian-snips-test-2, but there is no such .wav file"),
    ("ks", rename("speech_commands_test_set_v0.01/go", "Go"), "speech_commands_test_set_v0.01/go is missing"),
    ("qbe", twice(QBE), "lists eval_queries/quesst14_eval_0001.wav twice"),
    ("asv", edit("VoxCeleb1/veri_test.txt", lambda text: text.replace("\n", "\n\n", 1)), "line 2: expected"),
    ("sd", twice(f"{MIX}/wav.scp"), "lists test1 twice"),
    ("sd", replace(f"{MIX}/reco2dur", "test1 1.0", "test1 1.5"), "gives 1.5 s to test1, whose audio has 1.000 s"),
    ("sd", drop_line(f"{MIX}/utt2spk"), "has no line for the segment test1_B"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "damage", "message"), BAD_TEXT)
def test_a_list_that_does_not_fit_the_audio_is_named(task: str, damage: Damage, message: str, corpora: Path) -> None:
    damage(corpora)
    said = refused(superbit("check", task, corpora, "--any-size"))
    assert re.search(message, said) and "\n" not in said


@pytest.mark.parametrize(("task", "listing"), [("ic", CSV), ("sid", SID)])
def test_audio_that_no_list_names_is_counted(task: str, listing: str, corpora: Path) -> None:
    assert "no list names" not in superbit("check", task, corpora, "--any-size").stdout
    drop_line(listing)(corpora)
    name = AUDIO[task].partition("/")[2]
    said = superbit("check", task, corpora, "--any-size").stdout
    assert f"audio files that no list names: 1, such as {name}" in said


def make_untidy(root: Path) -> None:
    """Do what archives, editors and links do to corpora, without a change of what they say."""
    for name in LIBRISPEECH_SETS.values():
        first, second = sorted((root / "LibriSpeech" / name).glob("*/*"))
        listing = next(first.glob("*.trans.txt"))
        listing.write_bytes(b"\xef\xbb\xbf" + listing.read_bytes().replace(b"\n", b"\r\n\r\n").replace(b" ", b"\t", 1))
        elsewhere = root / "elsewhere" / name / second.name
        elsewhere.parent.mkdir(parents=True)
        second.rename(elsewhere)
        second.symlink_to(elsewhere)
    for file in [*root.glob("SNIPS/*/*-1.wav"), *root.glob("speech_commands*/go/*.wav")]:
        file.rename(file.with_suffix(".WAV"))
    for file in root.glob("LibriSpeech/*/*/1/*-0001.flac"):
        file.rename(file.with_suffix(".FLAC"))
    for csv in root.glob("len_for_bucket/*.csv"):
        csv.write_text(re.sub(r"(/1/\d+-1-0001)\.flac", r"\1.FLAC", csv.read_text()))
    iob = root / IOB
    iob.write_bytes(b"\xef\xbb\xbf" + iob.read_bytes().replace(b"\n", b"\n\n", 2).replace(b" BOS", b"\tBOS", 1))
    for folder in [path for path in root.rglob("*") if path.is_dir() and "meta_data" not in path.parts]:
        (folder / ".DS_Store").write_bytes(b"Bud1")
        for name in ("._left.wav", "._left.flac", "._1-1.trans.txt"):
            (folder / name).write_bytes(b"\x00\x05\x16\x07")
        (folder / "__MACOSX" / "deeper").mkdir(parents=True, exist_ok=True)
        (folder / "__MACOSX" / "deeper" / "left.wav").write_bytes(b"\x00\x05\x16\x07")
    (root / "LibriSpeech/test-clean/102/1/loop").symlink_to(root / "LibriSpeech/test-clean/102")


@pytest.mark.parametrize("task", ["asr", "pr", "ks", "sid", "sf", "ic", "er"])
def test_an_untidy_corpus_gives_the_same_numbers(task: str, tiny_corpora: Path, tmp_path: Path) -> None:
    from runners.downstream import run as downstream
    from tests.runners.downstream.experiments import overrides, train

    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    make_untidy(root)
    before, after = (superbit("check", task, corpora, "--any-size").stdout for corpora in (tiny_corpora, root))
    assert "every file is there" in after and re.findall(r": \d+", after) == re.findall(r": \d+", before)
    train(task, root, tmp_path / "exp", changes=overrides(task, steps=2))
    evaluate = ["-m", "evaluate", "-e", str(tmp_path / "exp/states-2.ckpt"), "--device", "cpu"]
    assert downstream.main([*evaluate, "--corpora", str(tiny_corpora)]) == downstream.main(evaluate)
