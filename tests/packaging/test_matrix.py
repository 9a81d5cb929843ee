"""`make test-matrix`: interpreters and releases of torch are chosen, environments that fail are rows of the table."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import superbit

SCRIPT = Path(superbit.__file__).parent / ".ci" / "test_matrix.py"
if not SCRIPT.is_file():
    pytest.skip("superbit is installed without its sources", allow_module_level=True)


@pytest.fixture(scope="module")
def matrix() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("test_matrix_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def fake_python(path: Path, version: str) -> Path:
    """Write a program that answers as an interpreter of this version; one without a version fails, as a shim does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 127\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the fake interpreters are shell scripts")
def test_the_newest_interpreter_of_each_supported_python_is_found(
    matrix: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pyenv = tmp_path / "path", tmp_path / "pyenv"
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("PYENV_ROOT", str(pyenv))
    assert matrix.interpreters() == []
    fake_python(path / "python3.13", "")
    first = fake_python(path / "python3.12", "3 12 4")
    fake_python(pyenv / "versions/3.12.1/bin/python", "3 12 1")
    second = fake_python(pyenv / "versions/3.13.0/bin/python", "3 13 0")
    for version in ("3.9.18", "3.15.0"):
        fake_python(pyenv / f"versions/{version}/bin/python", version.replace(".", " "))
    assert matrix.interpreters() == [str(first), str(second)]


@pytest.mark.parametrize(
    "system, machine, cuda, expected",
    [
        ("linux", "x86_64", False, ["2.12.0+cpu", "2.13.0+cpu"]),
        ("linux", "x86_64", True, ["2.11.0", "2.15.0"]),
        ("linux", "aarch64", False, ["2.11.0", "2.15.0"]),
        ("darwin", "arm64", False, ["2.11.0", "2.15.0"]),
    ],
)
def test_the_oldest_and_the_newest_torch(
    matrix: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    cuda: bool,
    expected: list[str],
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = ["2.15.0", "2.16.0.dev1", "2.13.0+cpu", "2.13.0", "2.12.0+cpu", "2.11.0", "2.9.1", "2.13.0+cu130"]
    assert matrix.oldest_and_newest(found, "2.11", cuda) == expected
    assert matrix.oldest_and_newest(["2.13.0+cpu"], "2.11", False) == ["2.13.0+cpu"]
    assert matrix.oldest_and_newest(["2.9.1"], "2.11", cuda) == []
    assert matrix.lowest_torch() == "2.11"


REPORT = """<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2">
<testcase classname="tests.a" name="good"/><testcase classname="tests.a" name="bad"><failure/></testcase>
<testcase classname="tests.b" name="broken"><error/></testcase></testsuite></testsuites>"""


def test_each_environment_is_a_row_and_a_failure_says_why(
    matrix: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Environment(matrix.Environment):  # type: ignore[name-defined, misc]
        def run(self, *command: Any, where: Path | None = None) -> str:
            words = [str(word) for word in command]
            if "venv" in words:
                Path(words[-1]).mkdir(parents=True)
            if "index" in words:
                return "torch (2.15.0)\nAvailable versions: 2.15.0, 2.11.0\n"
            if "list" in words:
                return '[{"name": "torch", "version": "2.11.0"}, {"name": "torchaudio", "version": "2.11.1"}]'
            if "torch==2.15.0" in words:
                raise RuntimeError(matrix.last_line("x\nERROR: no wheel of torch | here\n\n[notice] a new pip\n"))
            if "pytest" in words:
                (self.copy.parent / "tests.xml").write_text(REPORT)
                raise RuntimeError("1 failed")
            return ""

    monkeypatch.setattr(matrix, "Environment", Environment)
    arguments = argparse.Namespace(torch=None, cuda=True, folder=None, tests=["tests/upstreams"])
    rows = list(matrix.run(sys.executable, arguments, tmp_path))
    name = platform.python_version()
    assert matrix.table(rows).splitlines()[2:] == [
        f"| {name} | 2.11.0 | 2.11.1 | tests/upstreams | 5 | 2 | 2 | failed |",
        f"| {name} | 2.15.0 |  | tests/upstreams |  |  |  | not installed: no wheel of torch / here |",
    ]
    assert "  tests.a.bad\n  tests.b.broken" in capsys.readouterr().err
    assert not list(tmp_path.glob(f"{name}-*")), "environments are removed"


def test_an_interpreter_that_is_not_supported_is_one_sentence(
    matrix: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["test_matrix.py", "--python", "no_such_python"])
    with pytest.raises(SystemExit, match=r"^no_such_python is no Python 3.10 to 3.14"):
        matrix.main()
