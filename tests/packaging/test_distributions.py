"""The sdist and the wheel: the wheel, built from the sdist without git, works in an empty environment and folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import superbit
from runners.corpora.bucket_files import write_bucket_files
from tests.tiny_corpora import build
from tests.upstreams.packed.models import noise, quantized
from upstreams.packed import convert

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(superbit.__file__).parent
PACKAGES = ("downstream_configs", "pretrain", "runners", "upstreams")
FOLDERS = (".ci", *PACKAGES, "benchmarks", "docs", "examples", "tests")
FILES = ("superbit.py", "pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
LICENCES = ("LICENSE", "NOTICE")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "MANIFEST.in").is_file(), reason="superbit is installed without its sources"),
]


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """Run a command in a folder without this checkout on its path; return what it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SUPERBIT", "COV_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_in(folder: Path, kind: str, out: Path) -> Path:
    """Build a distribution as pip does, by the functions of the build backend, with this environment's setuptools."""
    code = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    run(folder, sys.executable, "-c", code, out)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree that is no checkout: the build leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCES)
    for name in (*FILES, *LICENCES):
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def unpacked(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the sdist."""
    archive = build_in(sources, "sdist", tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / f"superbit-{version('superbit')}"


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    return build_in(unpacked, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `python` and `superbit` of a new environment that has the wheel, by pip.

    The packages that superbit requires are this environment's: a .pth file adds their folder, which does not run the
    .pth files in it, so an editable installation of superbit is not found.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(folder, sys.executable, "-m", "venv", folder)
    here = folder / ("Scripts" if os.name == "nt" else "bin")
    run(folder, here / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    installed = Path(run(folder, here / "python", "-c", "import superbit; print(superbit.__file__)").strip())
    assert installed.is_relative_to(folder)
    (installed.parent / "required.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
    return here


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def files(root: Path, names: tuple[str, ...] = FOLDERS) -> set[str]:
    return {path.relative_to(root).as_posix() for name in names for path in (root / name).rglob("*") if path.is_file()}


def test_the_sdist_holds_the_whole_source_tree(sources: Path, unpacked: Path) -> None:
    assert files(sources) - files(unpacked) == set()
    assert [name for name in (*FILES, *LICENCES) if not (unpacked / name).is_file()] == []


def test_the_wheel_holds_all_code_data_and_type_information(sources: Path, wheel: Path) -> None:
    """C++ is not in the wheel, but for the header of the C interface, which programs that link the library need."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {name for name in files(sources, PACKAGES) if not name.endswith((".cpp", ".h"))}
    expected |= {"superbit.py", "upstreams/packed/engine/superbit.h"}
    assert expected - names == set()
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == set(LICENCES)
    strange = {name for name in names - expected if ".dist-info/" not in name}
    assert all(name.startswith("upstreams/packed/_kernel.") for name in strange), strange


def test_the_commands_work_in_an_empty_folder(scripts: Path, empty: Path) -> None:
    expected = f"superbit {version('superbit')}\n"
    assert run(empty, scripts / "superbit", "--version") == expected
    assert run(empty, scripts / "python", "-m", "superbit", "--version") == expected
    assert "transformer_mini" in run(empty, scripts / "python", "-m", "superbit", "profile", "transformer_mini")
    check = subprocess.run([scripts / "python", "-m", "pip", "check"], capture_output=True, text=True, cwd=empty)
    assert [line for line in check.stdout.splitlines() if line.startswith("superbit ")] == []


def test_a_dry_run_of_superb_mini_plans_all_cells(scripts: Path, empty: Path, tmp_path: Path) -> None:
    corpora = build(tmp_path / "corpora")
    librispeech = corpora / "LibriSpeech"
    for name in ("train-clean-100", "dev-clean", "test-clean"):
        shutil.copytree(librispeech / name, librispeech / f"{name.partition('-')[0]}-synthetic")
    write_bucket_files(librispeech, corpora / "len_for_bucket", ["train-synthetic", "dev-synthetic", "test-synthetic"])
    command = ("evaluate", "superb_mini", "--corpora", corpora, "--out", "runs", "--dry-run")
    printed = run(empty, scripts / "superbit", *command, SUPERBIT_CACHE=str(tmp_path / "cache"))
    assert "42 of 42 trainings to run" in printed
    assert list(empty.iterdir()) == []


FEATURES = """
import sys, torch, superbit, upstreams
from upstreams.packed import kernels
names = superbit.register()
import s3prl.hub
assert set(names) <= set(vars(s3prl.hub))
waveforms = torch.load(sys.argv[2])
with torch.no_grad():
    states = superbit.load(sys.argv[1])(waveforms, torch.tensor([waveforms.shape[1]]))
torch.save(states, sys.argv[3])
print(upstreams.__path__[0], kernels.chosen())
"""


def test_a_packed_model_gives_the_features_of_the_checkout(scripts: Path, empty: Path, tmp_path: Path) -> None:
    model, waveforms = quantized("sparseformer_dn_mini", "w1a32"), noise(1, 8000)
    packed, audio, states = (tmp_path / name for name in ("packed.safetensors", "audio.pt", "states.pt"))
    convert.save(packed, convert.pack(model), {})
    torch.save(waveforms, audio)
    where, kernel = run(empty, scripts / "python", "-c", FEATURES, packed, audio, states).split()
    assert Path(where).is_relative_to(scripts.parent)
    assert kernel != "torch" or shutil.which("c++") is None, "the wheel holds no kernel"
    with torch.no_grad():
        expected = model(waveforms, torch.tensor([8000]))
    torch.testing.assert_close(torch.load(states), expected, rtol=1e-3, atol=1e-3)
    assert list(empty.iterdir()) == []
