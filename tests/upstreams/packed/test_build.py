"""The kernel under sanitizers, the files of its build, and the package without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import upstreams

ROOT = Path(upstreams.__file__).parents[1]
PACKED = ROOT / "upstreams/packed"
COMPILER = shutil.which("g++") or shutil.which("clang++")
HAS_SOURCES = (ROOT / "pyproject.toml").is_file()


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
def test_the_kernel_is_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    assert COMPILER is not None
    program = tmp_path / "kernel_check"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags = ["-std=c++17", "-O1", "-g1", *sanitizers, "-pthread", "-w", f"-I{PACKED}"]
    sources = [*(PACKED / "kernel").rglob("*.cpp"), Path(__file__).with_name("kernel_check.cpp")]
    built = subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not HAS_SOURCES, reason="superbit is installed without its sources")
def test_the_build_lists_every_file_of_the_kernel() -> None:
    """An unlisted source is not compiled; an unlisted header is missing from a source distribution."""
    listed = set(re.findall(r'"(upstreams/packed/(?:kernel|engine)/[^"]+)"', (ROOT / "pyproject.toml").read_text()))
    files = {path.relative_to(ROOT).as_posix() for path in PACKED.rglob("*") if path.suffix in (".cpp", ".h")}
    assert listed == files


@pytest.mark.skipif(not HAS_SOURCES, reason="superbit is installed without its sources")
def test_the_package_installs_and_runs_without_a_compiler(tmp_path: Path) -> None:
    """pip builds a wheel from a copy of the sources with an empty PATH; the installed package has no native kernel."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("upstreams", "pretrain", "runners", "downstream_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    bare = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(target), str(source)], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(target.rglob("*.so")) and (target / "upstreams/packed/kernels.py").is_file()
    program = (
        "from upstreams.packed import kernels, library\n"
        f"assert kernels.__file__.startswith({str(target)!r})\n"
        "assert library.levels() == () and kernels.chosen() == 'torch'\n"
    )
    environment = {**bare, "PYTHONPATH": str(target)}
    environment.pop("SUPERBIT_KERNEL", None)
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no compiled kernel is installed" in run.stderr
