"""The kernel under sanitizers, and the package where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import upstreams

ROOT = Path(upstreams.__file__).parents[1]
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
def test_the_kernel_is_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    assert COMPILER is not None
    program = tmp_path / "kernel_check"
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread", "-w"]
    sources = [ROOT / "upstreams/packed/kernel.cpp", Path(__file__).with_name("kernel_check.cpp")]
    built = subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="superbit is installed without its source")
def test_the_package_installs_and_runs_where_there_is_no_compiler(tmp_path: Path) -> None:
    """pip builds a wheel from a copy of the sources with an empty PATH; what it installs has no kernel and says so."""
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
        "import upstreams.packed.kernels as kernels\n"
        f"assert kernels.__file__.startswith({str(target)!r})\n"
        "assert kernels.native_levels() == () and kernels.chosen() in ('numba', 'torch')\n"
    )
    environment = {**bare, "PYTHONPATH": str(target)}
    environment.pop("SUPERBIT_KERNEL", None)
    run = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no compiled kernel is installed" in run.stderr
