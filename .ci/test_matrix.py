"""Runs the fast tests in a fresh environment for each Python and for the oldest and newest torch; prints one table.

    make test-matrix                                          # the Pythons of this machine, CPU builds of torch
    make test-matrix ARGS="--python python3.12 --torch 2.14.1 tests/upstreams"
    make test-matrix ARGS=--cuda                              # also the registry's builds with CUDA: several GB each

A row is one environment: a copy of this checkout's files, installed with the extras of `make install`. What cannot be
installed is a row with the reason. The exit code is 1 if a test failed or an environment could not be installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = [(3, minor) for minor in range(10, 15)]
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
# As in the Makefile: a file's tests stay in one process.
PYTEST = ("-m", "pytest", "-q", "-m", "not slow", "--numprocesses", "auto", "--maxprocesses", "8", "--dist", "loadfile")
COLUMNS = ("Python", "torch", "torchaudio", "tests", "passed", "failed", "skipped", "result")


@dataclass
class Row:
    """One environment: its versions, and the counts of its tests or why there are none."""

    python: str
    torch: str
    torchaudio: str = ""
    tests: str = "fast suite"
    counts: tuple[int, int, int] | None = None  # passed, failed, skipped
    result: str = "not run"

    def cells(self) -> list[str]:
        """Return one text for each of COLUMNS."""
        counts = [str(count) for count in self.counts] if self.counts else ["", "", ""]
        return [self.python, self.torch, self.torchaudio, self.tests, *counts, self.result]


def version_of(python: str) -> tuple[int, int, int] | None:
    """Return the version of an interpreter; None if it does not run, as a version manager's shim may not."""
    code = "import sys; print(*sys.version_info[:3])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    numbers = done.stdout.split()
    return (int(numbers[0]), int(numbers[1]), int(numbers[2])) if done.returncode == 0 and len(numbers) == 3 else None


def interpreters() -> list[str]:
    """Return the newest interpreter of each supported Python, from PATH and from pyenv's folder."""
    names = [f"python{major}.{minor}" for major, minor in SUPPORTED]
    found = [path for name in names if (path := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += [str(path) for path in sorted(pyenv.glob("versions/3.*/bin/python"))]
    newest: dict[tuple[int, int], tuple[tuple[int, int, int], str]] = {}
    for path in found:
        version = version_of(path)
        if version and version[:2] in SUPPORTED:
            newest[version[:2]] = max(newest.get(version[:2], (version, path)), (version, path))
    return [newest[version][1] for version in sorted(newest)]


def key(version: str) -> tuple[int, ...]:
    """Return what versions are sorted by; a CPU build (2.13.0+cpu) equals its release."""
    return tuple(int(number) for number in version.partition("+")[0].split("."))


def oldest_and_newest(available: Iterable[str], lowest: str, cuda: bool) -> list[str]:
    """Return the oldest and the newest of the available releases from `lowest` on, CPU builds alone unless `cuda`.

    Outside Linux on x86-64, PyPI's builds are CPU builds as well.
    """
    releases = [
        version for version in available if re.fullmatch(r"[\d.]+(\+cpu)?", version) and key(version) >= key(lowest)
    ]
    only_cpu_builds = not cuda and sys.platform == "linux" and platform.machine() == "x86_64"
    chosen = [version for version in releases if version.endswith("+cpu") or not only_cpu_builds]
    chosen.sort(key=lambda version: (key(version), version))
    return [chosen[0], chosen[-1]] if len(chosen) > 1 else chosen


def counts(junit: Path) -> tuple[int, int, int]:
    """Return how many tests passed, failed (errors included) and were skipped, from pytest's XML report."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return total - failed - errors - skipped, failed + errors, skipped


def failures(junit: Path) -> list[str]:
    """Return the names of the tests that failed, from pytest's XML report."""
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [f"{case.get('classname')}.{case.get('name')}" for case in failed]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def last_line(text: str) -> str:
    """Return the last line of an error message that is not a hint, for one cell of the table."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ").replace("|", "/")


class Environment:
    """A new environment with a copy of this checkout's files, in a folder of its own."""

    def __init__(self, folder: Path, python: str) -> None:
        self.python = folder / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.copy = folder / "superbit"
        self.run(python, "-m", "venv", folder / "environment", where=ROOT)

    def run(self, *command: str | Path, where: Path | None = None) -> str:
        """Run a command in the copy; return its output. Raises RuntimeError with its last message if it fails."""
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=where or self.copy, env=clean, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(last_line(done.stdout + done.stderr))
        return done.stdout

    def pip(self, *arguments: str | Path, where: Path | None = None) -> str:
        """Run pip, which sees PyTorch's CPU builds beside the registry."""
        return self.run(self.python, "-m", "pip", *arguments, where=where)

    def available(self) -> list[str]:
        """Return the releases of torch that pip finds."""
        index = ("--extra-index-url", CPU_BUILDS, "--retries", "1")
        printed = self.pip("index", "versions", "torch", *index, where=ROOT)
        (line,) = (line for line in printed.splitlines() if line.startswith("Available versions:"))
        return [version.strip() for version in line.partition(":")[2].split(",")]

    def install(self, torch: str) -> None:
        """Copy what git tracks, or would track, and install it editable with this release of torch."""
        listed = self.run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", where=ROOT)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.copy / name)
        index = ("--extra-index-url", CPU_BUILDS, "--retries", "1") if torch.endswith("+cpu") else ()
        self.pip("install", "--quiet", *index, f"torch=={torch}")
        self.pip("install", "--quiet", "--editable", ".[corpora,dev,onnx]", f"torch=={torch}", *index)
        self.pip("check")

    def test(self, paths: Sequence[str]) -> tuple[int, int, int]:
        """Run the fast tests in these paths; return how many passed, failed and were skipped."""
        report = self.copy.parent / "tests.xml"
        try:
            self.run(self.python, *PYTEST, f"--junitxml={report}", *paths)
        except RuntimeError:
            if not report.is_file():
                raise
            print("failed:", *failures(report), sep="\n  ", file=sys.stderr, flush=True)
        return counts(report)


def lowest_torch() -> str:
    """Return the oldest release of torch that pyproject.toml allows."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found, "pyproject.toml names no lowest torch"
    return found[1]


def run(python: str, arguments: argparse.Namespace, folder: Path) -> Iterable[Row]:
    """Yield the rows of one interpreter."""
    name = ".".join(map(str, version_of(python) or ()))
    tests = " ".join(arguments.tests) or "fast suite"
    try:
        versions = arguments.torch or oldest_and_newest(
            Environment(folder / "look", python).available(), lowest_torch(), arguments.cuda
        )
    except RuntimeError as error:
        yield Row(name, "", tests=tests, result=f"not run: {error}")
        return
    if not versions:
        yield Row(
            name, "", tests=tests, result="not run: pip finds no CPU build of torch; --cuda takes builds with CUDA"
        )
    for torch in dict.fromkeys(versions):
        row = Row(name, torch, tests=tests)
        print(f"{datetime.datetime.now():%H:%M} Python {name}, torch {torch}", file=sys.stderr, flush=True)
        place = folder / f"{name}-{torch}"
        try:
            environment = Environment(place, python)
            environment.install(torch)
            installed = json.loads(environment.pip("list", "--format", "json"))
            row.torchaudio = next(package["version"] for package in installed if package["name"] == "torchaudio")
            row.counts = environment.test(arguments.tests)
            row.result = "failed" if row.counts[1] else "passed"
        except RuntimeError as error:
            row.result = f"failed: {error}" if row.torchaudio else f"not installed: {error}"
        if not arguments.folder:  # each takes gigabytes
            shutil.rmtree(place, ignore_errors=True)
        yield row


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="PYTHON", help="an interpreter; repeatable (default: all)")
    parser.add_argument(
        "--torch", action="append", metavar="VERSION", help="a release; repeatable (default: oldest and newest)"
    )
    parser.add_argument("--cuda", action="store_true", help="choose among builds with CUDA as well: several GB each")
    parser.add_argument(
        "--folder", type=Path, help="where the environments are made and stay (default: a temporary folder)"
    )
    parser.add_argument("tests", nargs="*", metavar="TESTS", help="paths of tests (default: the whole fast suite)")
    return parser.parse_args(words)


def main() -> int:
    arguments = parse()
    pythons = arguments.python or interpreters()
    if unusable := [python for python in pythons if (version_of(python) or ())[:2] not in SUPPORTED]:
        sys.exit(f"{unusable[0]} is no Python 3.10 to 3.14: name one with --python")
    if not pythons:
        sys.exit("there is no Python 3.10 to 3.14 here: install one, or name it with --python")
    with tempfile.TemporaryDirectory() as temporary:
        rows = [row for python in pythons for row in run(python, arguments, arguments.folder or Path(temporary))]
    print(f"{datetime.date.today()}, {platform.system()} {platform.machine()}\n\n{table(rows)}")
    return int(any(not row.result.startswith(("passed", "not run")) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
