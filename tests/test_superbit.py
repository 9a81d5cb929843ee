"""superbit.py: the functions for scripts, and `python -m superbit` from a folder that hides our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import superbit
from tests.upstreams.packed.models import noise, quantized
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.packed import convert

ROOT = Path(superbit.__file__).parent


@pytest.fixture
def decoy(tmp_path: Path) -> Path:
    """A folder with packages of our names that must not be imported."""
    for name in ("benchmarks", "pretrain", "runners", "upstreams"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the decoy was imported')\n")
    return tmp_path


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a folder, with this checkout on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_runs_in_a_folder_that_has_packages_of_the_same_names(decoy: Path) -> None:
    done = run("-m", "superbit", "--version", folder=decoy)
    assert (done.returncode, done.stdout) == (0, f"superbit {version('superbit')}\n"), done.stderr
    done = run("-m", "superbit", "profile", "transformer_mini", folder=decoy)
    assert done.returncode == 0 and "transformer_mini" in done.stdout, done.stderr
    done = run("-m", "superbit", "profile", "transformer_minni", folder=decoy)
    assert done.returncode == 2 and done.stderr.startswith("superbit: ") and done.stderr.count("\n") == 1


def test_so_it_does_under_torchrun_and_in_spawned_processes(decoy: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "1", "-m")
    done = run(
        *torchrun,
        "superbit",
        "profile",
        "transformer_mini",
        "--measure",
        "--repeats",
        "1",
        "--seconds",
        "1",
        folder=decoy,
    )
    assert done.returncode == 0 and "real-time" in done.stdout, done.stderr


def test_importing_superbit_imports_neither_torch_nor_s3prl_nor_the_kernel(tmp_path: Path) -> None:
    code = (
        "import sys, superbit\n"
        "assert 'transformer_mini' in superbit.names() and superbit.__version__\n"
        "heavy = {'torch', 's3prl', 'numpy', 'ctypes', 'upstreams.packed.kernels'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_load_takes_names_and_files_packed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, audio, lengths = quantized("transformer_mini", "w1a1"), noise(1, 8000), torch.tensor([8000])
    plain, packed = tmp_path / "transformer_mini_w1a1.safetensors", tmp_path / "packed.safetensors"
    checkpoint.save(plain, model, None, {})
    convert.pack_checkpoint(plain, packed)
    monkeypatch.setenv("SUPERBIT_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in ("transformer_mini_w1a1", str(plain), plain, "packed.safetensors", packed):
        loaded = superbit.load(source)
        assert not loaded.training
        with torch.no_grad():
            torch.testing.assert_close(loaded(audio, lengths)[-1], model(audio, lengths)[-1], rtol=0, atol=1e-4)
    for unknown in ("transformer_minni", "sparseformer_dn_mini", tmp_path / "absent.safetensors"):
        with pytest.raises(UserError):
            superbit.load(unknown)


def test_register_puts_the_names_into_s3prl(tmp_path: Path) -> None:
    code = (
        "import superbit\n"
        "names = superbit.register()\n"
        "import s3prl.hub\n"
        "assert names == superbit.names() and all(hasattr(s3prl.hub, name) for name in names)\n"
    )
    done = run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
