"""README and docs: commands have the options that they use, links have targets, named files exist."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from runners.cli import app
from runners.downstream import arguments

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
if not (ROOT / "docs").is_dir():
    pytest.skip("superbit is installed without its docs", allow_module_level=True)


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words behind `superbit` of every command in the page's shell blocks, comments removed."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\|", line):
                words = shlex.split(part.replace("[", "").replace("]", ""), comments=True)
                if "superbit" in words:
                    yield words[words.index("superbit") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_they_use(page: Path) -> None:
    for words in command_lines(page):
        command = typer.main.get_command(app)
        options = {spelling for option in command.params for spelling in option.opts}
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
            options |= {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
        assert not getattr(command, "commands", {}) or {"--help", "--version"} | options >= set(rest), words
        if command.name == "downstream":
            options |= set(arguments.parser()._option_string_actions)
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)}
        assert used <= options | {"--help"}, f"{page.name}: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name}: {target}"


def test_the_files_that_the_page_on_architecture_names_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floor, named = "", []
    for line in page.splitlines():
        if match := re.fullmatch(r"## (\w+)/", line):
            floor = match[1]
        elif line.startswith("## "):
            floor = ""
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if floor and line.startswith("| `"):
            rooms = re.findall(r"`([\w./]+)`", cells[0])
            named += [f"{floor}/{room}" for room in rooms]
            files = re.sub(r"\([^)]*\)", "", cells[-1])
            named += [
                f"{floor}/{rooms[-1]}{file}" for file in re.findall(r"`(\w+(?:\.py|/))`", files) if len(cells) > 2
            ]
        elif not floor:
            named += re.findall(r"`((?:upstreams|pretrain|runners|benchmarks)/[\w./]*)`", line)
    missing = sorted({name for name in named if not (ROOT / name).exists()})
    assert len(named) > 60 and not missing, missing


def test_the_tables_of_results_are_those_of_the_committed_csv_files() -> None:
    tables = runpy.run_path(str(ROOT / "docs/tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert tables["with_tables"](text) == text, f"{page.name}: run python docs/tables.py"
