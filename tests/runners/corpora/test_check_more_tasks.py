"""Checks of the corpora of query-by-example, speaker verification and diarization."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runners.corpora.check import check_corpus
from tests import tiny_more_corpora
from tests.runners.corpora.test_published import refused, superbit
from upstreams.errors import UserError


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / name).write_text(change((root / name).read_text()))

    return edit


def _remove(name: str) -> Callable[[Path], None]:
    def remove(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


QUESST, TRIALS, SD = "quesst14Database", "VoxCeleb1/veri_test.txt", "Libri2Mix_diarization"


@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        ("qbe", _remove(f"{QUESST}/Audio/quesst14_00003.wav"), r"quesst14_00003\.wav is missing"),
        ("qbe", _remove(f"{QUESST}/scoring/language_key_eval.lst"), r"language_key_eval\.lst is missing"),
        ("qbe", _edit(f"{QUESST}/scoring/language_key_dev.lst", lambda text: "x\n" + text), "line 1: expected"),
        ("qbe", _edit(f"{QUESST}/scoring/language_key_dev.lst", lambda text: ""), "names no file of the language"),
        ("qbe", _remove(f"{QUESST}/scoring/groundtruth_quesst14_eval"), "groundtruth_quesst14_eval is missing"),
        ("qbe", _remove(f"{QUESST}/scoring/groundtruth_quesst14_dev/quesst14_dev.rttm"), r"holds no \.rttm"),
        ("asv", _remove("VoxCeleb1/test/wav/id10270/video0/00001.wav"), r"video0/00001\.wav is missing"),
        ("asv", _remove("VoxCeleb1/dev/wav/id10001"), "fewer than two speakers"),
        ("asv", _remove(TRIALS), r"veri_test\.txt is missing"),
        ("asv", _edit(TRIALS, lambda text: text.replace("0 id", "1 id")), "trials of the same speaker"),
        ("asv", _edit(TRIALS, lambda text: "2" + text), "line 1: expected"),
        ("sd", _remove(f"{SD}/wav/dev1.wav"), r"dev1\.wav is missing"),
        ("sd", _remove(f"{SD}/test/rttm"), "rttm is missing"),
        ("sd", _edit(f"{SD}/train/wav.scp", lambda text: "train0 rm -r / |\n"), "wav.scp, line 1: expected"),
        ("sd", _edit(f"{SD}/dev/wav.scp", lambda text: ""), "lists no recording"),
        ("sd", _edit(f"{SD}/dev/reco2dur", lambda text: text[:8]), "no line for the recording dev1"),
        ("sd", _edit(f"{SD}/test/rttm", lambda text: text.replace("test1", "test2")), "the recording test1"),
    ],
)
def test_a_damaged_corpus(task: str, damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    root = tiny_more_corpora.build(tmp_path / "corpora")
    check_corpus(task, root)
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        check_corpus(task, root)
    assert f"The layout expected for {task}: " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("start", [f"{SD}/", "../"], ids=["current folder", "folder of the list"])
def test_recordings_of_diarization_are_found_from_their_list_and_the_current_folder(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_more_corpora.build(tmp_path / "corpora")
    monkeypatch.chdir(root)
    for listing in (root / SD).glob("*/wav.scp"):
        listing.write_text(listing.read_text().replace(f"{root / SD}/", start))
    check_corpus("sd", root)
    (root / SD / "wav/test1.wav").unlink()
    with pytest.raises(UserError, match=rf"{root}/.*/wav/test1\.wav is missing"):
        check_corpus("sd", root)


def test_a_missing_package_is_named(more_tiny_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"qbe needs the package dtw: `pip install 'dtw-python>="):
        check_corpus("qbe", more_tiny_corpora)


@pytest.mark.parametrize("task", ["qbe", "asv", "sd"])
def test_the_command_checks_and_counts(task: str, more_tiny_corpora: Path) -> None:
    done = superbit("check", task, more_tiny_corpora, "--any-size")
    assert done.exit_code == 0 and f"{task}: every file is there" in done.stdout
    assert "are published" in refused(superbit("check", task, more_tiny_corpora))
    assert "nothing to write" in superbit("prepare", task, more_tiny_corpora).stdout
