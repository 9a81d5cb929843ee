"""Corpora as published, from the download to a result: check, prepare, check, train, evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from runners.cli import app
from runners.corpora.counts import Count, counts
from runners.corpora.published import COUNTS
from runners.downstream import run as downstream
from runners.tasks import SEVEN, TASKS, task_config
from tests.runners.corpora import published_corpora
from tests.runners.downstream.experiments import overrides, train
from upstreams.errors import UserError

# The first error before `prepare`, and a file that `prepare` makes.
MADE = {
    "asr": (r"test-clean.csv is missing; `superbit corpus prepare asr`", "len_for_bucket/dev-clean.csv"),
    "sid": ("veri_test_class.txt is missing; `superbit corpus prepare sid`", "VoxCeleb1/veri_test_class.txt"),
    "er": ("is missing; `superbit corpus prepare er`", "IEMOCAP/meta_data/Session5/train_meta_data.json"),
    "sf": ("slots.txt is missing; `superbit corpus prepare sf`", "SNIPS/slots.txt"),
}
# The file or folder that is removed from each task's corpus.
DAMAGES = {
    "asr": "LibriSpeech/test-clean/102/1/102-1-0000.flac",
    "pr": "LibriSpeech/test-clean/102/1/102-1.trans.txt",
    "ks": "speech_commands_v0.01/_background_noise_",
    "sid": "VoxCeleb1/dev/wav/id10001/video0/00001.wav",
    "er": "IEMOCAP/Session4/sentences/wav/Ses04M_script01_1/Ses04M_script01_1_F000.wav",
    "ic": "fluent_speech_commands_dataset/wavs/speakers/testspeaker/3.wav",
    "sf": "SNIPS/test",  # s3prl uses the files that the folder holds
}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_corpora.build(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def prepared(downloaded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "corpora"
    shutil.copytree(downloaded, root)
    done = superbit("prepare", "all", root)
    assert done.exit_code == 0, done.exception
    return root


def superbit(command: str, task: str, root: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["corpus", command, task, "--corpora", str(root), *more])


def refused(done: Result) -> str:
    assert isinstance(done.exception, UserError)
    return str(done.exception)


@pytest.mark.parametrize("task", SEVEN)
def test_from_the_download_to_a_result(task: str, downloaded: Path, prepared: Path, tmp_path: Path) -> None:
    if task in MADE:
        reason, path = MADE[task]
        message = refused(superbit("check", task, downloaded, "--any-size"))
        assert reason.removeprefix("test-clean") in message and f"The layout expected for {task}" in message
        assert not (downloaded / path).exists() and (prepared / path).is_file()
    done = superbit("check", task, prepared, "--any-size")
    assert done.exit_code == 0 and "every file is there" in done.stdout, done.exception
    again = superbit("prepare", task, prepared)
    assert again.exit_code == 0 and "nothing to write" in again.stdout

    train(task, prepared, tmp_path, changes=overrides(task, steps=2))
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "states-2.ckpt"), "--device", "cpu"])
    assert metrics is not None and TASKS[task].metric in metrics


@pytest.mark.parametrize("task", SEVEN)
def test_a_corpus_of_another_size_is_refused(task: str, prepared: Path) -> None:
    message = refused(superbit("check", task, prepared))
    first = counts(task, task_config(task, prepared))
    wrong = next(count for count in first if not count.is_as_published)
    assert f"{wrong.found} {wrong.part} of {task}" in message and f"{wrong.published} are published" in message


@pytest.mark.parametrize("task", SEVEN)
def test_the_error_names_the_missing_file(task: str, prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(prepared, root)
    path = root / DAMAGES[task]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = refused(superbit("check", task, root, "--any-size"))
    assert str(path) in message and f"The layout expected for {task}" in message and "\n" not in message


def test_labels_of_emotions_come_from_the_evaluations(prepared: Path) -> None:
    """Two dialogs in each session x (neutral, happy, excited, angry, sad); no others, and none without audio."""
    for session in range(1, 6):
        folder = prepared / f"IEMOCAP/meta_data/Session{session}"
        test, others = (json.loads((folder / f"{kind}_meta_data.json").read_text()) for kind in ("test", "train"))
        assert test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        assert len(test["meta_data"]) == 10 and len(others["meta_data"]) == 40
        labels = [row["label"] for row in test["meta_data"]]
        assert sorted(labels) == ["ang"] * 2 + ["hap"] * 4 + ["neu"] * 2 + ["sad"] * 2
        assert {row["speaker"] for row in test["meta_data"]} == {f"Ses0{session}F", f"Ses0{session}M"}
        assert all(row["path"].startswith(f"Session{session}/sentences/wav/") for row in test["meta_data"])
        assert not any(row["path"].startswith(f"Session{session}/") for row in others["meta_data"])


def test_the_content_of_the_prepared_lists(prepared: Path) -> None:
    assert (prepared / "SNIPS/slots.txt").read_text() == "O\nartist\ncity\ngenre"
    official = (prepared / "VoxCeleb1/iden_split.txt").read_text().split("\n")
    assert (prepared / "VoxCeleb1/veri_test_class.txt").read_text().splitlines() == [line for line in official if line]


def test_the_error_tells_where_to_get_a_missing_source(downloaded: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(downloaded, root)
    (root / "VoxCeleb1/iden_split.txt").unlink()
    assert "vox" in (message := refused(superbit("prepare", "sid", root))) and "iden_split.txt" in message
    lexicon = root / "lexicon/librispeech-lexicon.txt"
    lexicon.write_text(lexicon.read_text().replace("ZOO", "ZU"))
    assert "lacks 1 words of the transcripts, such as 'ZOO'" in refused(superbit("prepare", "pr", root))
    assert (root / "lexicon/missing_words.txt").read_text() == "ZOO 6\n"
    lexicon.unlink()
    assert "openslr" in refused(superbit("prepare", "pr", root))
    shutil.rmtree(root / "IEMOCAP/Session2/dialog")
    assert "EmoEvaluation is missing" in refused(superbit("prepare", "er", root))
    assert not (root / "IEMOCAP/meta_data").exists()
    (root / "SNIPS/all.iob.snips.txt").unlink()
    assert "all.iob.snips.txt is missing" in refused(superbit("prepare", "sf", root))
    assert "did you mean 'er'" in refused(superbit("check", "err", root))


def test_both_versions_of_speech_commands_are_as_published(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runners.corpora import counts as corpus_counts

    for published in COUNTS["ks"]:
        monkeypatch.setitem(corpus_counts.COUNTERS, "ks", lambda expert, published=published: dict(published))
        assert all(count.is_as_published for count in counts("ks", task_config("ks", prepared)))
    assert not Count("words", 30, 35).is_as_published
