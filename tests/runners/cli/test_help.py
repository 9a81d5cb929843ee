"""Every command's --help: complete, uniform, and printed without heavy imports."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runners.cli import app
from runners.corpora.mini.build import DEFAULT_HOURS
from runners.downstream import arguments

KEBAB = re.compile(r"--[a-z0-9]+(-[a-z0-9]+)*")
ROOT = typer.main.get_command(app)


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups of the app, with the words that call them."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


COMMANDS = {" ".join(path): command for path, command in commands()}
OWN = {name: command for name, command in COMMANDS.items() if name != "downstream"}  # not parsed by argparse


def help_text(name: str) -> str:
    """What `superbit NAME --help` prints on a wide terminal, without frames and line breaks."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert done.exit_code == 0, done.output
    return " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.output).split())


def test_all_commands_are_found() -> None:
    single = (
        "analyse board downstream evaluate export import manifest pack pretrain probe profile quantize report shards"
    )
    grouped = {"corpus mini", "corpus prepare", "corpus check", "labels mfcc", "labels features", "labels purity"}
    assert set(COMMANDS) == {"", "corpus", "labels", *single.split(), "submission", *grouped}


@pytest.mark.parametrize("name", OWN)
def test_options_are_described_spelled_in_kebab_case_and_show_their_defaults(name: str) -> None:
    text = help_text(name)
    assert OWN[name].help and OWN[name].help.split("\n")[0] in text
    for option in OWN[name].params:
        assert getattr(option, "help", None), f"{name}: {option.name} has no help"
        assert " ".join(str(option.help).split()) in text
        if option.param_type_name != "option":
            continue
        for spelling in (*option.opts, *option.secondary_opts):
            assert KEBAB.fullmatch(spelling) or re.fullmatch(r"-[a-z]", spelling), f"{name}: {spelling}"
        shown = option.show_default if isinstance(option.show_default, str) else None
        if shown is None and option.is_flag:
            shown = option.opts[0][2:] if option.secondary_opts and option.default else None
        elif shown is None and option.default is not None:
            shown = str(option.default)
        if shown is not None:
            assert re.search(rf"\[(env var: \w+; )?default: \(?{re.escape(shown)}\)?[;\]]", text), (
                f"{name}: {option.name}"
            )


def test_one_thing_has_one_spelling_in_all_commands() -> None:
    spellings: dict[str, set[str]] = {}
    for name, command in OWN.items():
        for option in command.params:
            if option.param_type_name == "option" and option.envvar:
                spellings.setdefault(str(option.envvar), set()).update(option.opts)
                assert str(option.envvar) in help_text(name)
    assert spellings == {"SUPERBIT_CORPORA": {"--corpora"}}
    own_flags = {f"--{name.replace('_', '-')}" for name in arguments.OWN_FLAGS}
    assert own_flags <= set(arguments.parser()._option_string_actions)
    store = {flag for flag in own_flags if "store" in flag}
    assert store <= {opt for option in COMMANDS["evaluate"].params for opt in option.opts}


def test_the_flags_of_downstream_are_described_and_show_their_defaults() -> None:
    flags = arguments.parser()
    text = " ".join(flags.format_help().split())
    for action in flags._actions:
        assert action.help, action.dest
        if isinstance(action, argparse._StoreAction) and action.default not in (None, False, argparse.SUPPRESS):
            assert f"default: {action.default}" in str(action.help) % vars(action), action.dest
        assert action.option_strings[-1] in text


def test_corpus_says_what_it_holds() -> None:
    assert all(word in str(COMMANDS["corpus"].help) for word in ("mini", "prepare", "check"))


def test_defaults_that_need_an_import_are_the_functions_own() -> None:
    (hours,) = (option for option in COMMANDS["corpus mini"].params if option.name == "hours")
    assert hours.default == DEFAULT_HOURS


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from runners.cli import app\n"
        f"for name in {list(COMMANDS)!r}:\n"
        "    try: done = CliRunner().invoke(app, [*name.split(), '--help'])\n"
        "    except SystemExit: continue\n"
        "    assert done.exit_code == 0, done.output\n"
        "heavy = {'torch', 's3prl', 'torchaudio', 'sklearn', 'pandas', 'matplotlib', 'numpy', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
