"""The flags of `superbit downstream`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runners.downstream import run as downstream
from runners.downstream.arguments import parser
from upstreams.errors import UserError


def test_flags_are_s3prls(monkeypatch: pytest.MonkeyPatch) -> None:
    import upstreams.s3prl.compat  # noqa: F401  (makes s3prl importable)

    # isort: split
    from s3prl import run_downstream

    parsers: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parsers.append(parser)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(argparse.ArgumentParser, "parse_args", keep)
        run_downstream.get_downstream_args()
    (s3prls,), ours = parsers, parser()
    assert set(ours._option_string_actions) - set(s3prls._option_string_actions) == {
        *("--corpora", "--threads", "--local-rank", "--upstream-module"),
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
        (["-m", "train", "-u", "fbank"], "the task is missing"),
        (["-m", "train", "-u", "fbank", "-d", "ctc"], "use -d pr or -d sf"),
        (["-m", "train", "-u", "fbank", "-d", "mosei"], "needs its configuration"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "--hub", "huggingface"], "--hub"),
        (["-m", "train", "-d", "ks", "-a"], "add -p DIR"),
        (["-m", "train", "-u", "fbank", "-d", "ks"], "add -p DIR"),
        (["-m", "train", "-d", "ks", "-p", "x"], "add -u NAME"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x"], "add --corpora DIR, set SUPERBIT_CORPORA"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "--corpora", "nowhere"], "The layout expected for ks"),
        (
            ["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "-c", "no.yaml"],
            r"configuration .*no\.yaml is missing",
        ),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-p", "x", "-i", "no.ckpt"], r"no checkpoint no\.ckpt"),
        (["-m", "evaluate", "-e", "no.ckpt"], r"no checkpoint no\.ckpt"),
        (["-m", "evaluate", "-e", "."], r"holds no checkpoint"),
        (["-m", "inference", "-u", "fbank", "-d", "ks", "-p", "x", "--corpora", "y"], "for asr only, not for ks"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERBIT_CORPORA", raising=False)
    with pytest.raises(UserError, match=message):
        downstream.main(arguments)
    assert not list(tmp_path.iterdir())
