"""Files that are made for a corpus: stale ones are named and made again, and a user's own are never overwritten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from runners.downstream import run as downstream
from runners.matrix.run import evaluate
from tests import tiny_more_corpora
from tests.runners.corpora import published_corpora
from tests.runners.corpora.test_published import refused, superbit
from tests.runners.downstream.experiments import few_steps, overrides, train
from tests.tiny_corpora import Sounds
from upstreams.errors import UserError

LIBRI = "LibriSpeech/dev-clean/101/1"
EVALUATION = "IEMOCAP/Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = published_corpora.build(tmp_path_factory.mktemp("prepared"))
    for task in ("asr", "sid", "er", "sf"):
        assert superbit("prepare", task, root).exit_code == 0
    return root


@pytest.fixture
def prepared(prepared_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_once, tmp_path / "corpora"))


def _add_utterance(root: Path) -> None:
    Sounds(9).write(root / LIBRI / "101-1-0009.flac")
    with (root / LIBRI / "101-1.trans.txt").open("a") as file:
        file.write("101-1-0009 A DOG\n")


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new)) and None


CHANGES = {
    "asr": (_add_utterance, "len_for_bucket/dev-clean.csv", "101-1-0009.flac"),
    "sid": (_edit("VoxCeleb1/iden_split.txt", "3 id10001", "1 id10001"), "VoxCeleb1/veri_test_class.txt", "1 id10001"),
    "er": (_edit(EVALUATION, "\tneu\t", "\tsad\t"), "IEMOCAP/meta_data/Session2/test_meta_data.json", "sad"),
    "sf": (_edit("SNIPS/all.iob.snips.txt", "city city", "town town"), "SNIPS/slots.txt", "town"),
}  # fmt: skip


@pytest.mark.parametrize("task", CHANGES)
def test_a_stale_file_is_named_and_made_again(task: str, prepared: Path) -> None:
    change, name, content = CHANGES[task]
    assert "nothing to write" in superbit("prepare", task, prepared).stdout
    before = (prepared / name).read_text()
    change(prepared)
    said = refused(superbit("check", task, prepared, "--any-size"))
    assert " is stale: " in said or "is not in" in said
    assert task == "sf" or f"`superbit corpus prepare {task}` makes it again" in said
    done = superbit("prepare", task, prepared)
    assert str(prepared / name) in done.stdout and content in (prepared / name).read_text() != before
    assert superbit("check", task, prepared, "--any-size").exit_code == 0


@pytest.mark.parametrize("task", CHANGES)
def test_a_users_file_is_never_overwritten(task: str, prepared: Path) -> None:
    change, name, _ = CHANGES[task]
    own = (prepared / name).read_text() + "\n"
    (prepared / name).write_text(own)
    change(prepared)
    superbit("prepare", task, prepared)
    assert (prepared / name).read_text() == own


def test_a_users_list_stays_when_another_one_is_missing(prepared: Path) -> None:
    lists = prepared / "IEMOCAP/meta_data"
    own = lists / "Session1/train_meta_data.json"
    content = json.loads(own.read_text())
    own.write_text(json.dumps(content | {"meta_data": content["meta_data"][::-1]}))
    (lists / "Session4/test_meta_data.json").unlink()
    done = superbit("prepare", "er", prepared)
    assert done.stdout == f"er: {lists}/Session4/test_meta_data.json\n"
    assert json.loads(own.read_text())["meta_data"] == content["meta_data"][::-1]
    assert superbit("check", "er", prepared, "--any-size").exit_code == 0


def test_a_changed_corpus_changes_the_lengths_of_speaker_verification(tmp_path: Path) -> None:
    root = tiny_more_corpora.build(tmp_path / "corpora")
    lengths = root / "VoxCeleb1/dev/.wav_lengths/Voxceleb1_length.pt"
    changes = overrides("asv", steps=2)
    train("asv", root, tmp_path / "one", changes=changes)
    first, measured = torch.load(lengths, weights_only=True), lengths.stat().st_mtime_ns
    train("asv", root, tmp_path / "two", changes=changes)
    assert lengths.stat().st_mtime_ns == measured, "lengths are measured once"
    Sounds(3).write(root / "VoxCeleb1/dev/wav/id10001/video0/00001.wav", 1.7)
    shutil.rmtree(root / "VoxCeleb1/dev/wav/id10002/video1")
    train("asv", root, tmp_path / "three", changes=changes)
    second = torch.load(lengths, weights_only=True)
    assert len(first[0]) == 4 and len(second[0]) == 3 and second[1][0] > first[1][0] + 8000
    torch.save([[("id1", "v", "w.wav")], [9]], lengths)
    with pytest.raises(UserError, match=r"lists other audio than .* delete it"):
        train("asv", root, tmp_path / "four", changes=changes)
    lengths.write_bytes(b"no lengths")
    with pytest.raises(UserError, match=rf"{lengths} is damaged .* delete it"):
        train("asv", root, tmp_path / "four", changes=changes)


def test_a_read_only_corpus_is_prepared_checked_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = published_corpora.build(tmp_path / "corpora")
    tiny_more_corpora.verification(root / "VoxCeleb1", Sounds(5))
    may = os.access

    def access(path: Any, mode: int) -> bool:
        return may(path, mode) and not (mode & os.W_OK and root in (Path(path), *Path(path).parents))

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setenv("SUPERBIT_CACHE", str(tmp_path / "cache"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for task in ("asr", "sid", "er", "sf"):
        done = superbit("prepare", task, root)
        assert f"{task}: {tmp_path / 'cache'}" in done.stdout
        assert "nothing to write" in superbit("prepare", task, root).stdout
        assert superbit("check", task, root, "--any-size").exit_code == 0
    for task in ("sid", "asv"):
        train(task, root, tmp_path / task, changes=overrides(task, steps=2))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    lexicon = root / "lexicon/librispeech-lexicon.txt"
    lexicon.write_text(lexicon.read_text().replace("ZOO", "ZU"))
    assert str(tmp_path / "cache") in refused(superbit("prepare", "pr", root))


ODD = "a'b\"c #1 [x]*? {y} $z ,,;:\\ \té\r\u2028\x85-=~"


@pytest.mark.parametrize("task", ["asr", "pr", "ks", "sid", "er", "ic", "sf"])
def test_a_folder_of_corpora_may_have_any_name(task: str, prepared_once: Path, tmp_path: Path) -> None:
    root = tmp_path / ODD / "corpora"
    root.parent.mkdir()
    root.symlink_to(prepared_once)
    done = superbit("check", task, root, "--any-size")
    assert done.exit_code == 0 and "every file is there" in done.stdout, done.exception
    train(task, root, tmp_path / "exp", changes=overrides(task, steps=2))
    assert downstream.main(["-m", "evaluate", "-e", str(tmp_path / "exp/states-2.ckpt"), "--device", "cpu"])


def test_files_may_have_any_name(tmp_path: Path, tiny_corpora: Path) -> None:
    for part in ("LibriSpeech", "lexicon", "len_for_bucket"):
        shutil.copytree(tiny_corpora / part, tmp_path / part)
    for folder in sorted((tmp_path / "LibriSpeech").glob("*/*/1")):
        listing = next(folder.glob("*.trans.txt"))
        for number, odd in enumerate(("a.b,c", "d\"e'[x]*?", "\x85#é")):
            stem = f"{folder.parent.name}-1-{number:04d}"
            (folder / f"{stem}.flac").rename(folder / f"{stem}{odd}.flac")
            listing.write_text(listing.read_text().replace(stem, stem + odd))
    shutil.rmtree(tmp_path / "len_for_bucket")
    assert superbit("prepare", "asr", tmp_path).exit_code == 0
    for task in ("asr", "pr"):
        done = superbit("check", task, tmp_path, "--any-size")
        assert done.exit_code == 0, done.exception
        train(task, tmp_path, tmp_path / "exp" / task, changes=overrides(task, steps=2))
    latin = os.fsencode(tmp_path / "LibriSpeech/test-clean/102/2/102-2-0001") + b"\xe9.flac"
    shutil.copy(tmp_path / "LibriSpeech/test-clean/102/2/102-2-0001.flac", latin)
    assert "has no line in" in refused(superbit("check", "pr", tmp_path, "--any-size"))


# A file that changes after the check: what the dataset reads is refused, too.
LATER = {
    "asr": "LibriSpeech/dev-clean/101/1/101-1-0000.flac",
    "pr": "LibriSpeech/dev-clean/101/1/101-1-0000.flac",
    "sid": "VoxCeleb1/dev/wav/id10001/video0/00001.wav",
    "er": "IEMOCAP/Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_F002.wav",
    "ic": "fluent_speech_commands_dataset/wavs/speakers/trainspeaker/3.wav",
    "sd": "Libri2Mix_diarization/wav/train1.wav",
}


@pytest.mark.parametrize("task", LATER)
def test_a_file_that_slips_through_the_check_is_named_when_it_is_read(
    task: str, tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    root = tmp_path / "corpora"
    if task == "sd":
        tiny_more_corpora.build(root)
    else:
        shutil.copytree(tiny_corpora, root)
    wave, rate = soundfile.read(root / LATER[task], always_2d=True)
    soundfile.write(root / LATER[task], wave.repeat(2, 1), rate)
    monkeypatch.setattr("runners.downstream.checks.check_config", lambda *args: None)
    with pytest.raises(UserError, match=rf"{LATER[task]} has 16000 Hz and (2 channels|shape .*2\)): "):
        train(task, root, tmp_path / "exp", changes=overrides(task, steps=2))


def test_the_second_check_opens_no_file(tiny_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert superbit("check", "pr", tiny_corpora, "--any-size").exit_code == 0
    opened: list[str] = []
    monkeypatch.setattr("runners.corpora.headers.read_header", opened.append)
    assert superbit("check", "pr", tiny_corpora, "--any-size").exit_code == 0 and not opened


def test_the_cells_of_a_matrix_do_not_look_up_the_corpus_again(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners.corpora import files

    read, log = files.read_headers, tmp_path / "read.txt"

    def logged(corpus: Path, names: list[str]) -> Any:
        with log.open("a") as file:
            file.write("read\n")
        return read(corpus, names)

    monkeypatch.setattr(files, "read_headers", logged)
    tasks = {"ic": few_steps("ic", steps=2)}
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(yaml.safe_dump({"upstreams": ["fbank_no_cmvn"], "tasks": tasks, "seeds": [0], "device": "cpu"}))
    assert evaluate(matrix, tiny_corpora, tmp_path / "runs") == 0
    assert (tmp_path / "runs/cells/fbank_no_cmvn/ic/seed0/results.json").is_file()
    assert log.read_text() == "read\n"
