"""The provenance of a run: versions, the commit of this project and of no other, and the machine."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from upstreams import machine, versions


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with this project's code, as far as its commit depends on it."""
    code = tmp_path / "checkout" / "upstreams"
    code.mkdir(parents=True)
    shutil.copyfile(versions.__file__, code / "versions.py")
    git(code.parent, "init", "-q")
    git(code.parent, "add", ".")
    git(code.parent, "commit", "-q", "-m", "first")
    return code.parent


def test_the_commit_is_this_projects_and_says_when_the_code_differs_from_it(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not code")
    assert versions.commit.__wrapped__(checkout) == head
    (checkout / "upstreams" / "new.py").write_text("pass\n")
    assert versions.commit.__wrapped__(checkout) == f"{head}-dirty"


@pytest.mark.parametrize("kept", ["left out", "committed"])
def test_the_commit_of_a_repository_around_the_installation_is_not_taken(
    checkout: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv" / "site-packages"
    shutil.copytree(checkout / "upstreams", installed / "upstreams")
    if kept == "committed":
        git(checkout, "add", ".")
        git(checkout, "commit", "-q", "-m", "with its environment")
    assert versions.commit.__wrapped__(installed) == ""
    # In a git hook, GIT_DIR names the repository of the hook.
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    assert versions.commit.__wrapped__(installed) == ""


def test_provenance_names_torchaudio_and_the_processor() -> None:
    found = versions.versions()
    assert {"python", "superbit", "torch", "torchaudio", "s3prl", "commit"} == set(found)
    assert all(found[package] for package in ("torch", "torchaudio", "s3prl"))
    assert machine.processor() in machine.machine() and machine.processor() != ""
    assert machine.device_name("cpu") == "cpu"


@pytest.mark.parametrize(
    "extra, packages",
    [
        ("slurm", ["submitit"]),
        ("superb", ["dtw-python", "lxml", "h5py", "joblib"]),
        ("onnx", ["onnx", "onnxscript", "onnxruntime"]),
    ],
)
def test_the_command_for_an_extra_names_its_packages(extra: str, packages: list[str]) -> None:
    pip, install, *requirements = shlex.split(versions.install_command(extra))
    assert (pip, install) == ("pip", "install")
    assert [requirement.partition(">=")[0] for requirement in requirements] == packages


def test_no_message_names_a_package_index_entry_that_does_not_exist() -> None:
    sources = [path for wing in ("upstreams", "pretrain", "runners") for path in (versions.ROOT / wing).rglob("*.py")]
    assert sources and not [path for path in sources if "superbit[" in path.read_text(encoding="utf-8")]
