"""The runtime without Python: the C example with the system's compiler, and everything for aarch64 under emulation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

import upstreams
from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized, with_head
from upstreams.packed import convert
from upstreams.packed.runtime import Runtime

ROOT = Path(upstreams.__file__).parents[1]
PACKED, EXAMPLE = ROOT / "upstreams/packed", ROOT / "examples/keyword.c"
CROSS, EMULATOR = (
    shutil.which("aarch64-linux-gnu-g++"),
    shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64"),
)
ANALYSER = shutil.which("llvm-mca")
COMPILER = shutil.which("cc") or shutil.which("gcc")
SLOTS = {"action": ("on", "off"), "room": ("kitchen", "bedroom", "none")}

pytestmark = [
    pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected"),
    pytest.mark.skipif(not EXAMPLE.is_file(), reason="superbit is installed without its sources"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "model.safetensors"
    convert.save(path, convert.pack(quantized("sparseformer_dn_mini", "w1a1")), {})
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, noise(1, 20_000)[0].numpy(), 16_000, subtype="PCM_16")
    return path


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment}
    )


def expected_features(model: Path, speech: Path) -> np.ndarray:
    waveform, _ = soundfile.read(speech, dtype="float32")
    return np.stack(Runtime(model)(waveform)).mean((0, 1))


def expected_decision(model: Path, speech: Path) -> str:
    waveform, _ = soundfile.read(speech, dtype="float32")
    return "".join(f"{slot}: {choice}\n" for slot, choice in Runtime(model).decide(waveform).items())


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")
def test_the_c_example_prints_features_and_decisions(model: Path, speech: Path, tmp_path: Path) -> None:
    library = next(PACKED.glob("_kernel*.so"))
    program = tmp_path / "keyword"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{PACKED}/engine"]
    built = run(COMPILER, *flags, EXAMPLE, library, "-o", program)
    assert built.returncode == 0, built.stderr
    there = {"LD_LIBRARY_PATH": str(library.parent)}
    done = run(program, model, speech, **there)
    assert done.returncode == 0, done.stderr
    features = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(features, expected_features(model, speech), atol=1e-4, rtol=1e-4)
    spotter = with_head(model, tmp_path / "spotter.safetensors", SLOTS)
    assert run(program, spotter, speech, **there).stdout == expected_decision(spotter, speech)
    for wrong, message in ((model, "is not a WAV file"), (tmp_path / "none", "is not a WAV file")):
        refused = run(program, model, wrong, **there)
        assert refused.returncode == 1 and message in refused.stderr
    refused = run(program, speech, speech, **there)
    assert refused.returncode == 1 and "damaged or not a safetensors file" in refused.stderr


# The binary product alone, at both levels; neon.cpp would otherwise compile every operation of the kernel.
PRODUCTS = """
#include "kernel/operations.h"
#undef SUPERBIT_FOR_EVERY_OPERATION
#define SUPERBIT_FOR_EVERY_OPERATION(DO)
#include "kernel/arch/neon.cpp"
using namespace superbit;
void with_neon(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
    neon::Binary::count_differing<4, 1>(bits, words, weights, counts);
}
void in_scalar_code(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
    generic::Binary::count_differing<4, 1>(bits, words, weights, counts);
}
"""


def counting_loops(assembly: str) -> dict[int, str]:
    """Return the innermost loops with popcounts, by the number of words whose differing bits a round counts."""
    lines, labels, found = assembly.splitlines(), dict[str, int](), dict[int, str]()
    for number, line in enumerate(lines):
        if label := re.match(r"(\.L\d+):", line):
            labels[label[1]] = number
        jump = re.match(r"\s+(?:b\.?[a-z]+|cbn?z|tbn?z)\s.*(\.L\d+)$", line)
        if jump is None or jump[1] not in labels:
            continue
        body = lines[labels[jump[1]] + 1 : number + 1]
        words = sum({"16b": 4, "8b": 1}[count[1]] for one in body if (count := re.match(r"\s+cnt\s.*\.(8b|16b)$", one)))
        if words and not any(one.startswith(".L") for one in body):
            found[words] = "\n".join(body)
    return found


@pytest.mark.skipif(CROSS is None or ANALYSER is None, reason="there is no compiler for aarch64, or no llvm-mca")
@pytest.mark.parametrize("processor", ["cortex-a55", "cortex-a76"])
def test_neon_counts_differing_bits_in_a_sixth_of_the_cycles_of_scalar_code(processor: str, tmp_path: Path) -> None:
    """As llvm-mca estimates them for a small and a large core."""
    assert CROSS is not None and ANALYSER is not None
    source, assembly = tmp_path / "products.cpp", tmp_path / "products.s"
    source.write_text(PRODUCTS)
    built = run(CROSS, "-std=c++17", "-O3", "-w", "-S", f"-I{PACKED}", source, "-o", assembly)
    assert built.returncode == 0, built.stderr
    loops = counting_loops(assembly.read_text())
    assert sorted(loops) == [4, 64]  # scalar, NEON
    cycles = {}
    for words, body in loops.items():
        (tmp_path / "loop.s").write_text(body)
        command = (ANALYSER, "-mtriple=aarch64-linux-gnu", f"-mcpu={processor}", "-iterations=100", tmp_path / "loop.s")
        total = re.search(r"Total Cycles:\s+(\d+)", run(*command).stdout)
        assert total is not None
        cycles[words] = int(total[1]) / 100 / words
    print(f"{processor}: {cycles[4]:.2f} cycles a word in scalar code, {cycles[64]:.2f} with NEON")
    assert cycles[4] >= 6 * cycles[64]


@pytest.mark.slow
@pytest.mark.skipif(CROSS is None or EMULATOR is None, reason="there is no compiler for aarch64, or no emulator")
def test_the_kernel_and_a_whole_model_on_aarch64(model: Path, speech: Path, tmp_path: Path) -> None:
    """At every level: NEON with and without dot products, and scalar."""
    assert CROSS is not None and EMULATOR is not None
    objects = []
    for source in [*(PACKED / "kernel").rglob("*.cpp"), *(PACKED / "engine").rglob("*.cpp")]:
        objects.append(tmp_path / f"{source.stem}.o")
        built = run(CROSS, "-std=c++17", "-O2", "-pthread", "-w", "-c", source, "-o", objects[-1])
        assert built.returncode == 0, built.stderr
    check, keyword = tmp_path / "kernel_check", tmp_path / "keyword"
    common = [f"-I{PACKED}", f"-I{PACKED}/engine", *objects, "-static", "-pthread", "-w"]
    built = run(CROSS, "-std=c++17", "-O1", Path(__file__).with_name("kernel_check.cpp"), *common, "-o", check)
    assert built.returncode == 0, built.stderr
    done = run(EMULATOR, check)
    assert done.returncode == 0 and done.stdout == "0 failures at neon_dot neon scalar\n", done.stdout + done.stderr
    example = tmp_path / "keyword.o"
    built = run(CROSS.replace("g++", "gcc"), "-std=c11", "-O1", "-c", f"-I{PACKED}/engine", EXAMPLE, "-o", example)
    assert built.returncode == 0, built.stderr
    built = run(CROSS, example, *common, "-o", keyword)
    assert built.returncode == 0, built.stderr
    done = run(EMULATOR, keyword, model, speech)
    assert done.returncode == 0, done.stderr
    features = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(features, expected_features(model, speech), atol=1e-3, rtol=1e-3)
    spotter = with_head(model, tmp_path / "spotter.safetensors", SLOTS)
    assert run(EMULATOR, keyword, spotter, speech).stdout == expected_decision(spotter, speech)
