"""`make install`: it chooses a Python and a build of torch, says first what it downloads, and uses uv where it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import superbit

MAKEFILE = Path(superbit.__file__).parent / "Makefile"
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None or not MAKEFILE.is_file(), reason="there is no make, or no Makefile")

PYTHON = """#!/bin/sh
case "$1 $2" in
*sys.version_info*) exit {unsupported} ;;
*sys.executable*) echo /path/of/{name} ;;
"-m venv") mkdir -p .venv/bin && cp bin/pip .venv/bin/pip && echo "{name} $*" >> log ;;
esac
"""
LOGGING = '#!/bin/sh\necho "{name} $*" >> log\n'
NO_CPU_BUILD = '#!/bin/sh\ncase "$*" in *+cpu*) exit 1 ;; esac\necho "pip $*" >> log\n'


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, and in bin/ all programs that it finds: no Python and no uv."""
    shutil.copyfile(MAKEFILE, tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bin").mkdir()
    for name in ("mkdir", "cp", "touch"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    add(tmp_path, "pip", LOGGING.format(name="pip"))
    return tmp_path


def add(clone: Path, name: str, text: str) -> None:
    program = clone / "bin" / name
    program.write_text(text)
    program.chmod(0o755)


def add_python(clone: Path, name: str, supported: bool = True) -> None:
    add(clone, name, PYTHON.format(name=name, unsupported=int(not supported)))


def install(clone: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run `make install` with the programs of the clone only."""
    command = [str(MAKE), "install", *settings]
    return subprocess.run(command, cwd=clone, env={"PATH": str(clone / "bin")}, capture_output=True, text=True)


def log(clone: Path) -> str:
    return (clone / "log").read_text() if (clone / "log").exists() else ""


def test_the_newest_supported_python_is_chosen_if_python3_is_not_supported(clone: Path) -> None:
    add_python(clone, "python3", supported=False)
    add_python(clone, "python3.11")
    add_python(clone, "python3.13")
    done = install(clone)
    assert done.returncode == 0, done.stderr
    assert "installing into .venv with python3.13: downloads about 0.5 GB" in done.stdout
    venv, torch, rest = log(clone).splitlines()
    assert venv == "python3.13 -m venv .venv" and torch.endswith("+cpu") and "--editable .[corpora,dev,onnx]" in rest
    add_python(clone, "python3")
    assert "nothing to be done" in install(clone).stdout.lower()
    (clone / ".venv/.installed").unlink()
    assert "with python3:" in install(clone).stdout


def test_without_a_cpu_build_pip_chooses_and_a_line_says_so(clone: Path) -> None:
    add_python(clone, "python3")
    add(clone, "pip", NO_CPU_BUILD)
    done = install(clone)
    assert done.returncode == 0 and "perhaps with CUDA (several GB)" in done.stdout, done.stderr
    assert "torch" not in log(clone) and "--editable" in log(clone)


def test_torch_with_cuda_is_the_registrys(clone: Path) -> None:
    add_python(clone, "python3")
    done = install(clone, "TORCH=cuda")
    assert done.returncode == 0 and "downloads about several GB (TORCH=cuda)" in done.stdout, done.stderr
    assert "torch==" not in log(clone)


@pytest.mark.parametrize("torch, backend", [("cpu", "cpu"), ("cuda", "auto")])
def test_uv_is_used_where_it_is_installed(clone: Path, torch: str, backend: str) -> None:
    add_python(clone, "python3")
    add(clone, "uv", LOGGING.format(name="uv") + "mkdir -p .venv\n")
    done = install(clone, f"TORCH={torch}")
    assert done.returncode == 0, done.stderr
    venv, packages = log(clone).splitlines()
    assert venv.startswith("uv venv") and "--python /path/of/python3 .venv" in venv
    assert packages.startswith("uv pip install") and f"--torch-backend {backend} --editable" in packages


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ((), "superbit needs Python 3.10 to 3.14: install one, or name it with PYTHON=/path/to/python"),
        (("PYTHON=python3", "TORCH=rocm"), "TORCH is rocm, but must be cpu or cuda"),
    ],
)
def test_what_cannot_be_installed_is_one_sentence(clone: Path, settings: tuple[str, ...], sentence: str) -> None:
    if settings:
        add_python(clone, "python3")
    done = install(clone, *settings)
    assert done.returncode == 2 and done.stdout.strip() == sentence
    assert log(clone) == "" and not (clone / ".venv").exists()
