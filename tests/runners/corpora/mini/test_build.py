"""Builds of the embedded corpora: layouts, splits, manifests, resuming, repeatability."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from runners.cli import corpus
from runners.corpora.check import check_config, check_corpus
from runners.corpora.mini import build as mini
from runners.corpora.mini import pretraining, sources, speech_commands
from runners.corpora.mini.build import build_mini
from runners.matrix.file import read_matrix
from runners.tasks import SEVEN, TASKS, task_config
from tests.runners.corpora.mini import game
from upstreams.errors import UserError

HOURS = 0.02


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    build_mini(folder / "corpora", HOURS, 0, folder / "sources", apt=False)
    return folder / "corpora"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Corpora from a generated game and generated prompts."""
    folder = tmp_path_factory.mktemp("recorded")
    digests = game.write_sources(folder / "sources", game.small_game())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PACKAGES", [replace(p, sha256=digests[p.name]) for p in sources.PACKAGES])
        build_mini(folder / "corpora", HOURS, 0, folder / "sources", apt=True)
    return folder / "corpora"


def audio_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for kind in ("*.wav", "*.flac") for path in root.rglob(kind))


def contents(root: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file; of manifests without their first line, which is the root."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = data.partition(b"\n")[2] if path.parent.name == "manifest" else data
            found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return found


def manifest(root: Path, split: str) -> dict[str, int]:
    first, *rows = (root / "manifest" / f"{split}.tsv").read_text().splitlines()
    assert first == str(root)
    return {path: int(samples) for path, samples in (row.split("\t") for row in rows)}


@pytest.mark.parametrize("task", SEVEN)
@pytest.mark.parametrize("kind", ["synthetic", "recorded"])
def test_every_task_finds_its_corpus(kind, task, request):
    check_corpus(task, request.getfixturevalue(kind))
    settings = read_matrix("superb_mini").tasks[task]  # names ASR's synthetic sets
    check_config(TASKS[task], task_config(task, request.getfixturevalue(kind), settings))


def test_s3prl_splits_the_keywords_as_planned(synthetic):
    import upstreams.s3prl.compat  # noqa: F401, I001  (lets s3prl import)
    from s3prl.downstream.speech_commands.expert import split_dataset

    train, valid = split_dataset(synthetic / speech_commands.TRAIN_ROOT)
    summary = json.loads((synthetic / "corpus.json").read_text())["tasks"]["ks"]["splits"]
    assert len(train) == summary["train"]["utterances"] and len(valid) == summary["dev"]["utterances"]
    names = [{path.name.split("_nohash_")[0] for _, path in part} for part in (train, valid)]
    tested = {
        re.search(r"([0-9a-f]{8})_nohash_", path.name).group(1)
        for path in (synthetic / speech_commands.TEST_ROOT).glob("*/*_nohash_*.wav")
    }
    assert not names[0] & names[1] and not (names[0] | names[1]) & tested
    folders = {path.name for path in (synthetic / speech_commands.TEST_ROOT).iterdir()}
    assert len(folders) == 12


def test_speakers_of_ic_and_sf_and_er_are_disjoint(synthetic):
    folder = synthetic / "fluent_speech_commands_dataset" / "data"
    rows = {name: list(csv.DictReader((folder / f"{name}_data.csv").open())) for name in ("train", "valid", "test")}
    speakers = [{row["speakerId"] for row in part} for part in rows.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers))
    assert {row["action"] + row["object"] for row in rows["test"]} <= {
        row["action"] + row["object"] for row in rows["train"]
    }
    meta = synthetic / "IEMOCAP" / "meta_data" / "Session1"
    parts = [json.loads((meta / f"{name}_meta_data.json").read_text())["meta_data"] for name in ("train", "test")]
    assert not {row["speaker"] for row in parts[0]} & {row["speaker"] for row in parts[1]}
    assert {row["label"] for row in parts[1]} == {"neu", "hap", "ang", "sad"}


def test_manifests_list_existing_files_and_none_that_is_held_out(synthetic):
    train, valid = manifest(synthetic, "train"), manifest(synthetic, "valid")
    assert valid and not train.keys() & valid.keys()
    for path, samples in {**train, **valid}.items():
        assert soundfile.info(synthetic / path).frames == samples
    held = [
        path
        for path in audio_files(synthetic)
        if re.search(r"(dev|test)-(clean|synthetic)/|_test_set_|IEMOCAP|/(valid|test)/", path)
    ]
    listed = (synthetic / "VoxCeleb1" / "veri_test_class.txt").read_text().split("\n")[:-1]
    held += [path for path in audio_files(synthetic) for line in listed if line[0] != "1" and path.endswith(line[2:])]
    held += [path for path in audio_files(synthetic) if re.search(r"wavs/speakers/.*/(dev|test)-", path)]
    assert len(held) > 100
    hashes = contents(synthetic)
    assert not {hashes[path] for path in held} & {hashes[path] for path in (*train, *valid)}


@pytest.mark.parametrize("apt", [False, True])
def test_no_speaker_of_a_dev_or_test_set_is_in_pretraining(apt, monkeypatch, tmp_path):
    digests = game.write_sources(tmp_path / "sources", game.small_game())
    monkeypatch.setattr(sources, "PACKAGES", [replace(p, sha256=digests[p.name]) for p in sources.PACKAGES])
    plan, found = pretraining.plan, {}

    def keep(utterances, task_clips, *arguments):
        found.update(tasks=task_clips, pretraining=plan(utterances, task_clips, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "plan", keep)
    with pytest.raises(KeyboardInterrupt):
        build_mini(tmp_path / "corpora", 2.0, 0, tmp_path / "sources", apt=apt)
    # SID's speakers are in all of its splits, which differ by dialogue. ER's sessions are the test sets of its folds.
    held = [clip for clip in found["tasks"] if clip.split in ("dev", "test") or "er" in clip.tasks]
    speakers = {clip.speaker for clip in held if "sid" not in clip.tasks} - {""}
    assert len(speakers) > 40 and {task for clip in held for task in clip.tasks} == set(SEVEN)
    assert not speakers & {clip.speaker for clip in found["pretraining"]}
    assert not {clip.recording for clip in held} & {clip.recording for clip in found["pretraining"]}
    assert {"asr", "ks", "ic", "sf"} <= {task for clip in found["pretraining"] for task in clip.tasks}


def test_recorded_speech_is_used_and_stated(recorded):
    summary = json.loads((recorded / "corpus.json").read_text())
    assert summary["complete"] and len(summary["sources"]) == len(sources.PACKAGES)
    assert {task: summary["tasks"][task]["speech"] for task in SEVEN} == {
        "asr": "synthetic", "pr": "real", "sid": "real", "ks": "synthetic", "er": "synthetic", "ic": "synthetic",
        "sf": "synthetic",
    }  # fmt: skip
    assert "synthetic" in summary["tasks"]["er"]["label"]
    manifests = {**manifest(recorded, "train"), **manifest(recorded, "valid")}
    assert any(path.startswith("pretrain/prompts/ru_RU_f_IvrvoiceRU/digits-one") for path in manifests)
    for path in (recorded / "LibriSpeech").rglob("*.flac"):
        info = soundfile.info(path)
        assert info.samplerate == 16_000 and info.channels == 1
        assert "-synthetic/" in str(path) or abs(info.duration - game.SECONDS) < 0.2
    transcripts = "".join(path.read_text() for path in (recorded / "LibriSpeech").glob("*-clean*/**/*.trans.txt"))
    assert re.fullmatch(r"(\d+-\d+-\d{4}( [A-Z']+)+\n)+", transcripts)
    lexicon = dict(
        line.split(" ", 1) for line in (recorded / "lexicon" / "librispeech-lexicon.txt").read_text().splitlines()
    )
    vocabulary = (recorded / "lexicon" / "phoneme.txt").read_text().split("\n")
    assert set(re.findall(r"[A-Z']+", transcripts)) == set(lexicon)
    assert {phone for phones in lexicon.values() for phone in phones.split()} <= set(vocabulary)


def test_a_killed_build_is_resumed_with_the_same_result(synthetic, tmp_path):
    out = tmp_path / "corpora"
    script = tmp_path / "build.py"
    script.write_text(
        "from pathlib import Path\n"
        "from runners.corpora.mini.build import build_mini\n"
        f"if __name__ == '__main__':\n    build_mini(Path({str(out)!r}), {HOURS}, 0, Path('sources'), False)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    partial = out.with_name(".corpora.partial")
    deadline = time.monotonic() + 60
    while not (partial.is_dir() and len(audio_files(partial)) > 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: (partial / path).stat().st_mtime_ns for path in audio_files(partial)}
    assert not out.exists() and kept
    build_mini(out, HOURS, 0, tmp_path / "sources", apt=False)
    assert contents(out) == contents(synthetic)
    assert not list(out.rglob(".*")) and not partial.exists()
    assert all((out / path).stat().st_mtime_ns == changed for path, changed in kept.items())


def test_the_command_builds_the_default_size_and_refuses_corpora_of_an_earlier_version(synthetic, tmp_path):
    assert inspect.signature(corpus.mini).parameters["hours"].default == mini.DEFAULT_HOURS
    older = tmp_path / "older"
    older.mkdir()
    summary = json.loads((synthetic / "corpus.json").read_text())
    summary["parameters"]["layout"] -= 1
    (older / "corpus.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"layout 1 \(requested: 2\); remove it"):
        build_mini(older, HOURS, 0, tmp_path, apt=False)


def test_a_finished_build_is_not_repeated(synthetic, monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "_build", None)
    assert build_mini(synthetic, HOURS, 0, tmp_path, apt=False)["complete"]
    for parameters in ((HOURS, 1, False), (2 * HOURS, 0, False), (HOURS, 0, True)):
        with pytest.raises(UserError, match="other parameters"):
            build_mini(synthetic, *parameters[:2], tmp_path, apt=parameters[2])


def test_another_seed_gives_other_audio(monkeypatch, tmp_path):
    planned = []

    def keep(root, clips):
        planned.append([(clip.path, clip.source) for clip in clips if clip.tasks == ("ks",)])
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "write_clips", keep)
    for seed in (0, 1, 0):
        with pytest.raises(KeyboardInterrupt):
            build_mini(tmp_path / "corpora", HOURS, seed, tmp_path, apt=False)
    assert planned[0] == planned[2] != planned[1]


def test_without_apt_one_line_announces_synthesis_alone(monkeypatch, tmp_path, caplog):
    def unavailable(folder):
        raise sources.Unavailable("this system has no apt-get")

    monkeypatch.setattr(sources, "obtain", unavailable)
    monkeypatch.setattr(mini, "_build", lambda *arguments: {"container": arguments[-1]})
    assert build_mini(tmp_path / "corpora", HOURS, 0, tmp_path / "sources", apt=True)["container"] is None
    (message,) = caplog.messages
    assert "this system has no apt-get" in message and "synthesis" in message


@pytest.mark.parametrize(("hours", "seed", "named"), [(0, 0, "hours"), (float("nan"), 0, "hours"), (1, -1, "seed")])
def test_bad_parameters_are_refused(tmp_path, hours, seed, named):
    with pytest.raises(UserError, match=named):
        build_mini(tmp_path / "corpora", hours, seed, tmp_path, apt=False)


@pytest.mark.parametrize(
    ("name", "content"), [("notes.txt", "mine"), ("corpus.json", "{"), ("corpus.json", "[]"), ("corpus.json", "{}")]
)
def test_a_folder_with_other_files_is_not_touched(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="name a new folder"):
        build_mini(tmp_path, HOURS, 0, tmp_path, apt=False)
    assert (tmp_path / name).read_text() == content


def test_missing_libraries_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "_LIBRARIES", ("py_nanotts", "no_such_library"))
    with pytest.raises(UserError, match=r"need no_such_library: .*pip install 'py-nanotts>=.* installs them"):
        build_mini(tmp_path / "corpora", HOURS, 0, tmp_path, apt=False)
