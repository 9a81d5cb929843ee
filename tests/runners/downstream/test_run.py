"""`superbit downstream` on a few sounds in the layout of each task's real corpus."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runners.downstream import arguments as downstream_args
from runners.downstream import run as downstream
from runners.tasks import SEVEN, TASKS
from upstreams.errors import UserError

# What makes a task's official head and batches fit four steps on six sounds.
SMALL_LSTM = {"project_dim": 16, "RNNs.dim": [8, 8]}
SMALL: dict[str, dict[str, Any]] = {
    "asr": {"datarc.batch_size": 2} | {f"modelrc.{key}": value for key, value in SMALL_LSTM.items()},
    "pr": {"corpus.batch_size": 2},
    "sf": {"corpus.batch_size": 2} | {f"model.{key}": value for key, value in SMALL_LSTM.items()},
    "ks": {"datarc.batch_size": 4},
    "sid": {"datarc.train_batch_size": 2},
    "er": {"datarc.train_batch_size": 2},
    "ic": {"datarc.train_batch_size": 2},
}


def overrides(task: str, steps: int = 4, workers: int = 0, **more: Any) -> str:
    """The value of -o for a run of a few steps that evaluates and saves every second one."""
    runner = {"total_steps": steps, "eval_step": 2, "save_step": 2, "log_step": 2, "gradient_accumulate_steps": 1}
    data = "corpus" if task in ("pr", "sf") else "datarc"
    expert = {**SMALL[task], f"{data}.num_workers": workers}
    changes = {f"config.runner.{key}": value for key, value in runner.items()}
    changes |= {f"config.downstream_expert.{key}": value for key, value in expert.items()}
    return ",,".join(f"{key}={value!r}" for key, value in (changes | more).items())


def train(task: str, root: Path, expdir: Path, *more: str, changes: str | None = None) -> None:
    arguments = ["-m", "train", "-u", "fbank_no_cmvn", "-d", task, "-p", str(expdir), "--corpora", str(root)]
    downstream.main([*arguments, "--device", "cpu", "-o", changes or overrides(task), *more])


def logged(expdir: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard tag without the task -> (step, value)."""
    events = EventAccumulator(str(expdir))
    events.Reload()
    return {
        tag.partition("/")[2]: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("name", SEVEN)
def test_train_evaluate_resume(
    name: str, tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, expdir = TASKS[name], tmp_path / "exp"
    train(name, tiny_corpora, expdir)
    assert [path.name for path in expdir.glob("states-*.ckpt")] == ["states-4.ckpt"]
    config = yaml.safe_load((expdir / "config.yaml").read_text())
    assert config["runner"]["total_steps"] == 4 and "${" not in str(config)

    states = expdir / "states-4.ckpt"
    capsys.readouterr()
    metrics = downstream.main(["-m", "evaluate", "-e", str(states), "--device", "cpu"])
    assert metrics is not None and task.metric in metrics
    assert f"{task.eval_split} {task.metric}: {metrics[task.metric]}" in capsys.readouterr().out
    # What training logged at that step is what evaluating its checkpoint gives.
    split = config["runner"]["eval_dataloaders"][0]
    again = downstream.main(["-m", "evaluate", "-e", str(states), "-t", split, "--device", "cpu"])
    assert again is not None
    for metric, value in again.items():
        step, before = logged(expdir)[f"{split}-{metric}"][-1]
        assert step == 4 and value == pytest.approx(before, rel=1e-6)
    assert downstream.main(["-m", "evaluate", "-e", str(expdir), "--device", "cpu"]) == metrics

    capsys.readouterr()
    train(name, tiny_corpora, expdir, "-a", changes="config.runner.total_steps=6")
    assert "would change it" not in capsys.readouterr().out
    assert [path.name for path in expdir.glob("states-*.ckpt")] == ["states-6.ckpt"]
    assert logged(expdir)[f"{split}-{task.metric}"][-1][0] == 6
    assert torch.load(expdir / "states-6.ckpt")["Step"] == 6


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name an upstream of this project and its checkpoint."""
    from upstreams.config import preset
    from upstreams.formats import checkpoint

    path = tmp_path_factory.mktemp("checkpoints") / "mini.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("transformer_mini")), None, {})
    return ["-u", "transformer_mini_untrained", "-k", str(path)]


@pytest.mark.parametrize("name", SEVEN)
def test_a_feature_store_leaves_the_numbers_as_they_are(
    name: str, tiny_corpora: Path, tmp_path: Path, untrained: list[str]
) -> None:
    more = {"config.downstream_expert.datarc.max_timestep": 6000} if name == "sid" else {}  # some are longer
    changes = overrides(name, **more)
    store = ["--feature-store", str(tmp_path / "features")]
    for folder, extra in (("plain", []), ("cold", store), ("warm", store)):
        train(name, tiny_corpora, tmp_path / folder, *untrained, *extra, changes=changes)
    plain, cold, warm = (logged(tmp_path / folder) for folder in ("plain", "cold", "warm"))
    # fp16 against fp32: losses to three digits; a store that was empty and one that was full: to the bit.
    assert any("loss" in tag for tag in plain)
    for tag, steps in plain.items():
        if "loss" in tag:
            assert [value for _, value in cold[tag]] == pytest.approx([value for _, value in steps], rel=2e-3)
    assert warm == cold
    # What is kept does not grow when the same waveforms come again, and holds no crop.
    shards = list((tmp_path / "features").glob("*/*.shard"))
    assert len(shards) == 1, "the second training found everything that the first had kept"


def test_a_feature_store_is_for_a_frozen_upstream(tiny_corpora: Path, tmp_path: Path) -> None:
    store = ["--feature-store", str(tmp_path / "features")]
    for flags, message in (
        (["-f"], "frozen upstream"),
        (["-s", "last_hidden_state"], "keeps hidden_states"),
        (["--feature-store-gb", "0"], "must be above 0"),
        (["--feature-store-dtype", "fp8"], "invalid choice"),
    ):
        with pytest.raises(UserError, match=message):
            train("ic", tiny_corpora, tmp_path / "exp", *store, *flags)
    assert not (tmp_path / "features").exists()


def test_finished_experiment_resumes_to_nothing(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("ic", tiny_corpora, tmp_path / "exp")
    before = (tmp_path / "exp" / "states-4.ckpt").read_bytes()
    capsys.readouterr()
    train("ic", tiny_corpora, tmp_path / "exp", "-a", "--seed", "5")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[superbit]")]
    assert "seed is 1337" in notes[0] and "-o args.seed=5" in notes[0]
    assert all("dev-best.ckpt" in note for note in notes[1:])
    assert (tmp_path / "exp" / "states-4.ckpt").read_bytes() == before


def test_same_seed_same_weights_other_seed_others(tiny_corpora: Path, tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate(("1", "1", "2")):
        train("ks", tiny_corpora, tmp_path / str(number), "--seed", seed)
        state = torch.load(tmp_path / str(number) / "states-4.ckpt")["Downstream"]
        weights.append(state["projector.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_corpora_that_moved(tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_corpora, first)
    monkeypatch.setenv("SUPERBIT_CORPORA", str(first))
    arguments = ["-m", "train", "-u", "fbank", "-d", "pr", "-p", str(tmp_path / "exp"), "--device", "cpu"]
    downstream.main([*arguments, "-o", overrides("pr")])
    before = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "exp"), "--device", "cpu"])
    first.rename(second)
    with pytest.raises(UserError, match="first"):
        downstream.main(["-m", "evaluate", "-e", str(tmp_path / "exp"), "--device", "cpu"])
    moved = ["-m", "evaluate", "-e", str(tmp_path / "exp"), "--corpora", str(second), "--device", "cpu"]
    assert downstream.main(moved) == before


def test_a_gpu_that_must_not_be_used(tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks 12 and 17 of s3prl: with --device cpu it enters torch.cuda.device all the same."""

    def touched(*args: Any) -> None:
        raise AssertionError("the GPU was touched")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", touched)
    monkeypatch.setattr(torch.cuda, "set_device", touched)
    train("ic", tiny_corpora, tmp_path / "exp")
    assert torch.cuda.is_available()


def test_two_processes(tiny_corpora: Path, tmp_path: Path) -> None:
    """Breaks 7 and 13 to 17 of s3prl: both ranks count their steps and end, and only one writes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [str(Path(sys.executable).with_name("superbit")), "downstream", "-m", "train", "-u", "fbank_no_cmvn"]
    arguments = ["-d", "ks", "-p", str(tmp_path), "--corpora", str(tiny_corpora), "-o", overrides("ks")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, *command, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "states-4.ckpt")
    assert (checkpoint["WorldSize"], checkpoint["Args"].local_rank) == (2, 0)
    assert len(list(tmp_path.glob("args_*.yaml"))) == 1
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path), "--device", "cpu"])
    assert metrics is not None and 0 <= metrics["acc"] <= 1


def test_infers_a_file(tiny_corpora: Path, tmp_path: Path) -> None:
    train("asr", tiny_corpora, tmp_path)
    file = next((tiny_corpora / "LibriSpeech").rglob("*.flac"))
    downstream.main(["-m", "inference", "-e", str(tmp_path), "-t", str(file), "--device", "cpu"])
    assert (tmp_path / "inference.ark").read_text().startswith(file.stem)
    with pytest.raises(UserError, match="no audio file"):
        downstream.main(["-m", "inference", "-e", str(tmp_path), "-t", "nothing.wav", "--device", "cpu"])


# ---- flags -------------------------------------------------------------------------------------------------------


def test_flags_are_s3prls(monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl import run_downstream

    parsers: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parsers.append(parser)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(argparse.ArgumentParser, "parse_args", keep)
        run_downstream.get_downstream_args()
    (s3prls,), ours = parsers, downstream_args.parser()
    assert set(ours._option_string_actions) - set(s3prls._option_string_actions) == {
        *("--corpora", "--threads", "--local-rank"),
        *("--feature-store", "--feature-store-gb", "--feature-store-dtype"),
    }
    for flag, theirs in s3prls._option_string_actions.items():
        action = ours._option_string_actions[flag]
        assert (action.dest, action.nargs, action.type) == (theirs.dest, theirs.nargs, theirs.type)
        if action.dest not in ("device", "backend", "evaluate_split"):  # chosen by the machine and the task
            assert action.default == theirs.default, flag


def test_help_needs_neither_torch_nor_s3prl() -> None:
    code = (
        "import sys\nfrom runners.downstream import run as downstream\n"
        "try: downstream.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 's3prl', 'torchaudio'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in (
        "--upstream_feature_selection",
        "--corpora",
        "--threads",
        "SUPERBIT_CORPORA",
        "asr pr ks sid er ic sf",
    ):
        assert flag in done.stdout


def test_bad_input_ends_the_command_with_one_sentence() -> None:
    command = [str(Path(sys.executable).with_name("superbit")), "downstream", "-m", "train", "-u", "fbank", "-d", "kss"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "superbit: there is no task 'kss' (-d): did you mean 'ks'?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "trian"], "invalid choice: 'trian'"),
        (["-m", "train", "--expdri", "x"], "no flag '--expdri': did you mean '--expdir'"),
        (["-m", "train", "--sed=3"], "no flag '--sed': did you mean '--seed'"),
        (["-m", "train", "-u", "fbank"], "which task to run"),
        (["-m", "train", "-u", "fbank", "-d", "ctc"], "say -d pr or -d sf"),
        (["-m", "train", "-u", "fbank", "-d", "mosei"], "needs its configuration"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "--hub", "huggingface"], "--hub"),
        (["-m", "train", "-d", "ks", "-a"], "-p DIR"),
        (["-m", "train", "-u", "fbank", "-d", "ks"], "-p DIR"),
        (["-m", "train", "-d", "ks", "-p", "x"], "-u NAME"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x"], "say --corpora DIR, set SUPERBIT_CORPORA"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "--corpora", "nowhere"], "The layout expected for ks"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "-c", "no.yaml"], r"no configuration .*no\.yaml"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "-i", "no.ckpt"], r"no checkpoint no\.ckpt"),
        (["-m", "evaluate", "-e", "no.ckpt"], r"no checkpoint no\.ckpt"),
        (["-m", "evaluate", "-e", "."], r"holds no checkpoint"),
        (["-m", "inference", "-u", "fbank", "-d", "ks", "-p", "x", "--corpora", "y"], "of asr only, not of ks"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERBIT_CORPORA", raising=False)
    with pytest.raises(UserError, match=message):
        downstream.main(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-u", "fbnk"], "no upstream 'fbnk' .*'fbank'"),
        (["-u", "superbit_local"], "-k"),
        (["-u", "superbit_local", "-k", "no.safetensors"], r"no\.safetensors"),
        (["-o", "config.runner.totl_steps=3"], r"'runner\.total_steps'"),
        (["-o", "args.sead=3"], "no argument 'sead' .*'seed'"),
        (["-o", "runner.total_steps=3"], r"args\.<flag>=<value>"),
        (["-o", "config.runner.total_steps"], r"args\.<flag>=<value>"),
        (["-o", "config.runner.total_steps=__import__('os').getpid()"], "must be a number"),
        (["-o", "config.optimizer.torch_optim_name=Adem"], r"no optimizer\.torch_optim_name 'Adem': .*'Adam'"),
        (["-o", "config.optimizer.name=TorchOptm"], r"no optimizer\.name 'TorchOptm': .*'TorchOptim'"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_bad_names(more: list[str], message: str, tiny_corpora: Path, tmp_path: Path) -> None:
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given = ["-m", "train", "-u", "fbank", "-d", "ks", "-p", str(tmp_path / "exp"), "--corpora", str(tiny_corpora)]
    with pytest.raises(UserError, match=message):
        downstream.main([*given, *more])
    assert not (tmp_path / "exp").exists()


def test_override_takes_literals_and_evaluates_nothing() -> None:
    args = argparse.Namespace(seed=1)
    config: dict[str, Any] = {"a": {"x": 1, "text": "t", "list": [1], "flag": True, "none": None}}
    changes = "config.a.x=1e-3,, config.a.text='AdamW' ,,config.a.list=[dev, test],,config.a.flag=false,,args.seed=7"
    downstream_args.override(changes, args, config)
    assert config["a"] == {"x": 1e-3, "text": "AdamW", "list": ["dev", "test"], "flag": False, "none": None}
    assert args.seed == 7
    downstream_args.override("config.a.text=exit(),,config.a.list=['a', 'b'],,config.a.none=/a=b", args, config)
    assert (config["a"]["text"], config["a"]["list"], config["a"]["none"]) == ("exit()", ["a", "b"], "/a=b")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "states-1.ckpt").write_bytes(b"PK half a file")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    for path in (tmp_path, tmp_path / "other.ckpt"):
        with pytest.raises(UserError, match="is no checkpoint of a downstream experiment"):
            downstream.main(["-m", "evaluate", "-e", str(path)])


# ---- traps of s3prl ----------------------------------------------------------------------------------------------


def test_unknown_features_are_refused(tiny_corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no features 'hiden_states' .*'hidden_states'"):
        train("ks", tiny_corpora, tmp_path, "-s", "hiden_states")


def test_a_train_split_that_fills_no_batch(tiny_corpora: Path, tmp_path: Path) -> None:
    changes = overrides("ks", **{"config.downstream_expert.datarc.batch_size": 1000})
    with pytest.raises(UserError, match="the train split of speech_commands fills no batch"):
        train("ks", tiny_corpora, tmp_path, changes=changes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("task", ["ks", "pr"])
def test_corrupt_audio_is_an_error_that_names_the_file(
    task: str, workers: int, tiny_corpora: Path, tmp_path: Path
) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    if task == "pr":
        corrupt = root / "LibriSpeech" / "train-clean-100" / "100" / "2" / "100-2-0002.flac"
    else:
        corrupt = sorted((root / "speech_commands_v0.01" / "up").iterdir())[-1]
    corrupt.write_bytes(b"RIFF and then nothing")
    changes = overrides(task, steps=40, workers=workers)
    with pytest.raises(UserError, match=f"^cannot read the audio file .*{corrupt.name}") as raised:
        train(task, root, tmp_path / "exp", changes=changes)
    assert "\n" not in str(raised.value)
