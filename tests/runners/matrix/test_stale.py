"""Results are neither lost nor stale: what they depend on, and what happens to them if it changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from runners import tasks
from runners.features.settings import StoreSettings
from runners.matrix import identity
from runners.matrix import run as matrix
from runners.matrix.run import Options
from runners.tasks import task_config
from tests.runners.matrix.fakes import FakeDownstream, results, write_matrix
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint

CELL = "cells/fbank_no_cmvn/ks/seed1"


def changed(file: Path, **ks: Any) -> Path:
    """Change settings of keyword spotting in a matrix file."""
    content = yaml.safe_load(file.read_text())
    content["tasks"]["ks"] |= ks
    file.write_text(yaml.safe_dump(content))
    return file


def dry_run(file: Path, corpora: Path, runs: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    capsys.readouterr()
    assert matrix.evaluate(file, corpora, runs, options=Options(dry_run=True, **options)) == 0
    return " ".join(capsys.readouterr().out.split())


def everything(runs: Path) -> dict[str, bytes]:
    """Return the content of all files that a training or a test has left, wherever they lie."""
    found = {path: path.read_bytes() for path in runs.glob("cells/**/*") if path.is_file() and path.suffix != ".txt"}
    return {str(path.relative_to(runs)): content for path, content in found.items() if path.name != ".lock"}


@pytest.fixture
def copied(corpora: Path, tmp_path: Path) -> Path:
    """Corpora that a test may change."""
    return Path(shutil.copytree(corpora, tmp_path / "corpora"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.torch_optim_name", "Adamm"),
        ("optimizer.lr", -1),
        ("scheduler.name", "linear_schedule"),
        ("runner.eval_dataloaders", ["dve"]),
        ("downstream_expert.modelrc.select", "UterranceLevel"),
    ],
)
def test_a_typo_in_a_value_that_s3prl_reads_late_loses_no_result(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, key: str, value: Any
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    before, calls = everything(runs), fake.calls_made()
    with pytest.raises(UserError, match=str(value[0] if isinstance(value, list) else value)):
        matrix.evaluate(changed(file, **{key: value}), corpora, runs)
    assert everything(runs) == before
    assert fake.calls_made() == calls


def test_a_checkpoint_that_cannot_be_used_loses_no_result(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.matrix.results.costs", lambda cell: {})  # counting takes seconds
    weights, other, runs = tmp_path / "weights.safetensors", tmp_path / "other.safetensors", tmp_path / "runs"
    checkpoint.save(weights, checkpoint.build(preset("transformer_mini")), None, {})
    checkpoint.save(other, checkpoint.build(preset("sparseformer_dn_mini")), None, {})
    upstream = {"label": "m", "name": "transformer_mini", "ckpt": str(weights)}
    file = write_matrix(tmp_path / "m.yaml", upstreams=[upstream])
    assert matrix.evaluate(file, corpora, runs) == 0
    before, content = everything(runs), weights.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged, message in ((content[:1000], "damaged"), (flipped, "altered"), (other.read_bytes(), "holds a")):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            matrix.evaluate(file, corpora, runs)
        assert everything(runs) == before


def test_stale_results_move_aside_and_come_back_without_training(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    original = file.read_text()
    assert matrix.evaluate(file, corpora, runs) == 0
    first = everything(runs)
    changed(file, **{"optimizer.lr": 0.5})
    line = "fbank_no_cmvn/ks seed 1: stale, was acc 50.00 %, because optimizer.lr 0.0001 -> 0.5"
    printed = dry_run(file, corpora, runs, capsys)
    assert "1 of 1 trainings to run" in printed and line in printed
    assert everything(runs) == first, "a dry run moves nothing"

    # The new training fails: the old number is not lost.
    fake.behaviour["fbank_no_cmvn"] = "raise"
    assert matrix.evaluate(file, corpora, runs) == 1
    assert not (runs / CELL / "results.json").exists(), "no report shows it beside numbers of other settings"
    (aside,) = (runs / CELL).glob("stale-*")
    assert {path.name for path in aside.iterdir()} == {
        *("results.json", "trained.json", "cell.json", "config.yaml", "expdir")
    }
    assert line in dry_run(file, corpora, runs, capsys)
    fake.behaviour.clear()
    assert matrix.evaluate(file, corpora, runs) == 0
    second = everything(runs)
    calls = len(fake.calls_made())

    # Back and forth again: both come back as they were.
    new = file.read_text()
    for text, expected, other in ((original, first, new), (new, second, original)):
        file.write_text(text)
        assert "0 of 1 trainings to run" in dry_run(file, corpora, runs, capsys)
        assert matrix.evaluate(file, corpora, runs) == 0
        for name, content in expected.items():
            assert "stale-" in name or everything(runs)[name] == content
        file.write_text(other)
        assert "0 of 1 trainings to run" in dry_run(file, corpora, runs, capsys)
    assert len(fake.calls_made()) == calls


def test_adding_and_removing_a_learning_rate_keeps_the_number(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, learning_rates={"ks": [0.1, 0.01]})
    assert matrix.evaluate(file, corpora, runs) == 0
    before = results(runs, "fbank_no_cmvn")
    write_matrix(file, learning_rates={"ks": [0.1, 0.01, 0.001]})
    printed = dry_run(file, corpora, runs, capsys)
    assert printed.count(" trained ") == 2 and printed.count(" new 4 ") == 1
    assert "stale, was acc 50.00 %, because learning rates [0.1, 0.01] -> [0.1, 0.01, 0.001]" in printed
    assert matrix.evaluate(file, corpora, runs) == 0
    calls = len(fake.calls_made())
    assert calls == 3 + 2
    write_matrix(file, learning_rates={"ks": [0.1, 0.01]})
    assert matrix.evaluate(file, corpora, runs) == 0
    assert results(runs, "fbank_no_cmvn") == before
    # Other settings move the heads of all learning rates aside; they come back with their results.
    head = runs / CELL / before["expdir"] / "dev-best.ckpt"
    changed(file, **{"runner.total_steps": 6})
    assert matrix.evaluate(file, corpora, runs) == 0
    calls = len(fake.calls_made())
    content = head.read_bytes()
    changed(file, **{"runner.total_steps": 4})
    head.unlink()
    assert matrix.evaluate(file, corpora, runs) == 0
    assert results(runs, "fbank_no_cmvn") == before and head.read_bytes() == content
    assert len(fake.calls_made()) == calls


def move(corpora: Path, elsewhere: Path) -> Path:
    return Path(shutil.move(corpora, elsewhere / "moved"))


def link(corpora: Path, elsewhere: Path) -> Path:
    (elsewhere / "link").symlink_to(corpora, target_is_directory=True)
    return elsewhere / "link"


@pytest.mark.parametrize("how", [move, link])
def test_corpora_that_move_or_are_reached_through_a_link_are_the_same(
    copied: Path, tmp_path: Path, fake: FakeDownstream, how: Callable[[Path, Path], Path]
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, copied, runs) == 0
    elsewhere = how(copied, tmp_path)
    assert matrix.evaluate(file, elsewhere, runs) == 0
    assert len(fake.calls_made()) == 2
    # A single path may be set, too.
    own = elsewhere / "speech_commands_v0.01"
    changed(file, **{"downstream_expert.datarc.speech_commands_root": str(own)})
    assert matrix.evaluate(file, elsewhere, runs) == 0
    assert len(fake.calls_made()) == 2


def test_another_clone_of_the_same_code_finds_the_results(
    tiny_corpora: Path, tmp_path: Path, fake: FakeDownstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml", tasks={"asr": {}, "pr": {}, "sf": {}}), tmp_path / "runs"
    assert matrix.evaluate(file, tiny_corpora, runs) == 0
    calls = len(fake.calls_made())
    clone = tmp_path / "clone"
    shutil.copytree(tasks.CONFIGS, clone)
    monkeypatch.setattr(tasks, "CONFIGS", clone)
    assert str(clone) in str(task_config("asr", tiny_corpora))
    assert matrix.evaluate(file, tiny_corpora, runs) == 0
    assert len(fake.calls_made()) == calls == 6


def longer_word(corpora: Path) -> None:
    path = next((corpora / "speech_commands_v0.01" / "yes").glob("*.wav"))
    samples, rate = soundfile.read(path)
    soundfile.write(path, [*samples, 0.0], rate)


def missing_word(corpora: Path) -> None:
    next((corpora / "speech_commands_v0.01" / "yes").glob("*.wav")).unlink()


def renamed_word(corpora: Path) -> None:
    path = next((corpora / "speech_commands_v0.01" / "yes").glob("*.wav"))
    path.rename(path.with_name(path.name.replace("nohash_0", "nohash_7")))


def described(corpora: Path) -> None:
    (corpora / "corpus.json").write_text(json.dumps({"tasks": {"ks": {"speech": "synthetic", "label": "spoken"}}}))


@pytest.mark.parametrize(
    ("change", "part"), [(longer_word, "audio"), (missing_word, "audio"), (renamed_word, "audio"), (described, "lists")]
)
def test_a_corpus_that_changes_makes_results_stale(
    copied: Path,
    tmp_path: Path,
    fake: FakeDownstream,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    part: str,
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, copied, runs) == 0
    change(copied)
    printed = dry_run(file, copied, runs, capsys)
    assert f"stale, was acc 50.00 %, because corpus, {part}" in printed
    assert "1 of 1 trainings to run" in printed


@pytest.mark.parametrize("text", ['{"tasks": {"ks"', "[]", '{"tasks": []}', '{"tasks": {"ks": {"speech": 3}}}'])
def test_a_damaged_description_of_embedded_corpora_is_named_and_they_do_not_pass_for_real_ones(
    copied: Path, tmp_path: Path, fake: FakeDownstream, text: str
) -> None:
    (copied / "corpus.json").write_text(text)
    with pytest.raises(UserError, match=r"corpus\.json is damaged: .*`superbit corpus mini`"):
        matrix.evaluate(write_matrix(tmp_path / "m.yaml"), copied, tmp_path / "runs")
    assert not fake.calls_made()


def test_recordings_that_swap_their_contents_make_results_stale(
    copied: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, number and sum of the bytes stay what they were: only the size of each file tells."""
    first, second = sorted((copied / "speech_commands_v0.01").glob("*/*_nohash_0.wav"))[:2]
    samples, rate = soundfile.read(second)
    soundfile.write(second, samples[:-100], rate)
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, copied, runs) == 0
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    printed = dry_run(file, copied, runs, capsys)
    assert "stale, was acc 50.00 %, because corpus, audio other content" in printed
    assert "1 of 1 trainings to run" in printed


def test_a_list_of_a_real_corpus_that_changes_makes_results_stale(
    tiny_corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = Path(shutil.copytree(tiny_corpora, tmp_path / "corpora"))
    lists = {
        "asr": corpora / "len_for_bucket" / "train-clean-100.csv",
        "pr": next((corpora / "LibriSpeech" / "dev-clean").rglob("*.trans.txt")),
        "sid": corpora / "VoxCeleb1" / "veri_test_class.txt",
        "er": corpora / "IEMOCAP" / "meta_data" / "Session1" / "train_meta_data.json",
        "ic": corpora / "fluent_speech_commands_dataset" / "data" / "valid_data.csv",
        "sf": corpora / "SNIPS" / "all.iob.snips.txt",
    }
    fold1 = {"downstream_expert.datarc.test_fold": "fold1"}
    file, runs = tmp_path / "m.yaml", tmp_path / "runs"
    write_matrix(file, tasks={task: fold1 if task == "er" else {} for task in lists})
    assert matrix.evaluate(file, corpora, runs) == 0
    for path in lists.values():
        text = path.read_text()
        path.write_text(text.removesuffix("\n") if text.endswith("\n") else f"{text}\n")
    printed = dry_run(file, corpora, runs, capsys)
    assert re.findall(r"(\w+) seed 1: stale, was \w+ 50.00 %, because corpus, lists", printed) == sorted(lists)


@pytest.mark.parametrize("settings", [{"runner.log_step": 1}, {"downstream_expert.datarc.num_workers": 2}])
def test_settings_without_an_effect_change_nothing(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, settings: dict[str, Any]
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    assert matrix.evaluate(changed(file, **settings), corpora, runs) == 0
    assert len(fake.calls_made()) == 2


OTHER = {
    "code": ({"features": "0", "heads": "0"}, "other code that computes features, other code that trains"),
    "versions": ({"torch": "1.0", "torchaudio": "1.0", "s3prl": "1.0"}, "torch 1.0 -> "),
}


def as_if_by_others(runs: Path, key: str, *names: str) -> None:
    """Rewrite the files of a matrix as if other code or versions had computed it."""
    for path in (path for name in names for path in runs.glob(f"cells/*/ks/**/{name}.json")):
        content = json.loads(path.read_text())
        content.get("identity", content)[key] = OTHER[key][0]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", OTHER)
def test_results_of_other_code_or_versions_stay_and_are_named(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    as_if_by_others(runs, key, "results", "trained", "cell")
    before = everything(runs)
    printed = dry_run(file, corpora, runs, capsys)
    assert f"stale, was acc 50.00 %, because {OTHER[key][1]}" in printed and "0 of 1 trainings to run" in printed
    assert "it stays, --rerun-stale computes it again" in printed
    assert matrix.evaluate(file, corpora, runs) == 0
    assert "1 results are of other code or versions. They stay in the report" in capsys.readouterr().out
    assert everything(runs) == before and len(fake.calls_made()) == 2

    assert "1 of 1 trainings to run" in dry_run(file, corpora, runs, capsys, rerun_stale=True)
    again = Options(rerun_stale=True)
    assert matrix.evaluate(file, corpora, runs, options=again) == 0
    assert len(fake.calls_made()) == 4
    assert results(runs, "fbank_no_cmvn")["identity"][key] == identity.origin()[key]
    (aside,) = (runs / CELL).glob("stale-*/results.json")
    assert aside.read_bytes() == before[f"{CELL}/results.json"]
    assert matrix.evaluate(file, corpora, runs, options=again) == 0
    assert len(fake.calls_made()) == 4


def test_an_unfinished_training_of_other_code_does_not_resume(
    corpora: Path, tmp_path: Path, fake: FakeDownstream
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml", learning_rates={"ks": [0.1, 0.01]}), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    (runs / CELL / "results.json").unlink()
    as_if_by_others(runs, "code", "trained", "cell")
    assert matrix.evaluate(file, corpora, runs) == 0
    assert [call["-m"] for call in fake.calls_made()[3:]] == ["train", "train", "evaluate"]
    assert len(list((runs / CELL).glob("lr*/stale-*/expdir/dev-best.ckpt"))) == 2


def test_code_that_changes_while_a_training_waits_is_refused(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = {"code": OTHER["code"][0], "versions": identity.origin()["versions"]}
    monkeypatch.setattr("runners.matrix.plan.origin", lambda: planned)
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 1
    log = (runs / CELL / "log.txt").read_text()
    assert "other code that computes features, other code that trains and tests heads since the plan was made" in log
    assert not fake.calls_made()


def with_checkpoints(file: Path, **checkpoints: Path) -> Path:
    # s3prl's example, which reads -k and takes any file.
    upstream = {"name": "customized_upstream"}
    listed = [{**upstream, "label": label, "ckpt": str(path)} for label, path in checkpoints.items()]
    return write_matrix(file, upstreams=listed)


def test_a_checkpoint_that_is_replaced_while_it_waits_is_refused_with_both_digests(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "1.pt", tmp_path / "2.pt"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    fake.replaces = {second: b"three"}
    file, runs = with_checkpoints(tmp_path / "m.yaml", a=first, b=second), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 1
    printed = capsys.readouterr().out
    digests = re.findall(r"[0-9a-f]{64}", printed)
    assert digests == [identity.hashlib.sha256(content).hexdigest() for content in (b"two", b"three")]
    assert "b/ks seed 1 was replaced after the plan was made" in printed
    assert [call["-k"] for call in fake.calls_made()] == [str(first)] * 2
    # Replaced during its own training, it is refused before the test.
    fake.replaces = {second: b"four"}
    assert matrix.evaluate(file, corpora, runs) == 1
    assert not (runs / "cells/b/ks/seed1/results.json").exists()
    fake.replaces = {}
    assert matrix.evaluate(file, corpora, runs) == 0


def test_a_renamed_checkpoint_with_the_same_bytes_is_the_same_cell(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    old.write_bytes(b"weights")
    file, runs = with_checkpoints(tmp_path / "m.yaml", mine=old), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    old.rename(new)
    with_checkpoints(file, mine=new)
    assert matrix.evaluate(file, corpora, runs) == 0
    assert len(fake.calls_made()) == 2
    # The test that is left after a kill uses the checkpoint under its new name.
    (runs / "cells/mine/ks/seed1/results.json").unlink()
    assert matrix.evaluate(file, corpora, runs) == 0
    assert fake.calls_made()[2]["-m"] == "evaluate" and fake.calls_made()[2]["-k"] == str(new)
    new.write_bytes(b"other weights")
    printed = dry_run(file, corpora, runs, capsys)
    assert re.search(r"stale, was acc 50.00 %, because checkpoint \(SHA-256\) \w{12}\.\.\. -> \w{12}\.\.\.", printed)


def test_features_in_int_8_are_another_cell(
    corpora: Path, tmp_path: Path, fake: FakeDownstream, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = write_matrix(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, corpora, runs) == 0
    assert "0 of 1 trainings" in dry_run(file, corpora, runs, capsys, store_dtype="fp32")
    printed = dry_run(file, corpora, runs, capsys, store_dtype="int8")
    assert "because number format of the stored features nothing -> int8" in printed
    assert StoreSettings(runs, 1).dtype == "fp16"
