"""Speed of packed models, compared with the same models in floating point and int8, and with public models.

    python -m benchmarks.inference --out runs/inference                       # everything: about two hours
    python -m benchmarks.inference --only 'transformer_base/*' --threads 1 --seconds 10 --batch 1
    python -m benchmarks.inference --only kernel --json kernel.json

All contenders of a setting run in turn in one process; times are medians. Peak memory is measured in a separate process
for each contender. Writes a table (CSV and Markdown) and a picture of real-time factor against storage. Weights are
random: speed does not depend on them. All models run without the output map, which public models do not have.
SUPERBIT_KERNEL selects the kernel of packed models.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from benchmarks.inference_models import CONTENDERS, Models
from benchmarks.inference_report import Row, markdown, picture
from benchmarks.timing import interleaved
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import json_text
from upstreams.packed import kernels
from upstreams.packed.library import LEVELS, call

PEAK_ROUNDS = 2_000_000
PRODUCTS = 10  # in a round
OPERATIONS = 12 * 16 * 32 * 2  # of a peak round: XOR and popcount, counted as multiplication and addition


def kernel_figures(level: str) -> dict[str, float]:
    """Return the speed in GOP/s of the 1-bit product 768 -> 3072 of 1000 rows; with AVX-512 also the popcount peak."""
    kinds = ["float output", "bit output", *(["popcount peak"] if level == "avx512" else [])]

    def run(kind: str, number: int) -> None:
        call("measure", level.encode(), number, PEAK_ROUNDS if kind == "popcount peak" else PRODUCTS)

    functions: dict[str, Callable[[], object]] = {
        kind: functools.partial(run, kind, number) for number, kind in enumerate(kinds)
    }
    seconds = interleaved(functions, repeats=31)
    figures = {name: PRODUCTS * 2 * 768 * 3072 * 1000 / seconds[name] / 1e9 for name in kinds[:2]}
    if "popcount peak" in seconds:
        figures["popcount peak"] = PEAK_ROUNDS * OPERATIONS / seconds["popcount peak"] / 1e9
    return figures


def peak_memory(folder: Path, name: str, threads: int, seconds: float, batch: int) -> float:
    """Return the peak memory, in megabytes, of a process that loads a contender and runs it once."""
    path, shape = Models(folder).path(name), (batch, int(seconds * SAMPLE_RATE))
    program = f"import numpy as np\nwaveforms = np.zeros({shape}, np.float32)\n"
    if name.endswith("_runtime"):  # as on a device, which imports nothing else
        program += (
            f"from upstreams.packed.runtime import Runtime\nruntime = Runtime({str(path)!r}, {threads})\n"
            "states = [runtime(waveform) for waveform in waveforms]\n"
        )
    else:
        program += (
            "from pathlib import Path\nfrom benchmarks.inference_models import Models\n"
            f"Models(Path({str(folder)!r})).load({name!r}, {threads})(waveforms)\n"
        )
    program += "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def measure(
    models: Models, names: list[str], threads: int, seconds: float, batch: int, repeats: int, memory: bool
) -> list[Row]:
    """Measure contenders in turn at one setting: threads, seconds of audio, batch size."""
    rng = np.random.default_rng(0)
    waveforms = (rng.standard_normal((batch, int(seconds * SAMPLE_RATE))) * 0.1).astype(np.float32)
    runs = {name: models.load(name, threads) for name in names}
    times = interleaved({name: functools.partial(run, waveforms) for name, run in runs.items()}, repeats)
    rows = []
    for name in names:
        is_packed = name.partition("/")[2].startswith("w1")
        peak = peak_memory(models.folder, name, threads, seconds, batch) if memory else float("nan")
        rows.append(
            Row(
                name,
                kernels.chosen() if is_packed else "",
                threads,
                seconds,
                batch,
                times[name] * 1e3,
                times[name] / (seconds * batch),
                models.path(name).stat().st_size / 1e6,
                peak,
            )
        )
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], help="contenders, * is a wildcard; `kernel`: only the 1-bit product"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads")
    parser.add_argument("--seconds", nargs="+", type=float, default=[2.0, 10.0, 30.0], help="lengths of the audio")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of a setting; times are medians")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="file to write all results to")
    parser.add_argument("--out", type=Path, help="folder for inference.csv, inference.md and inference.png")
    arguments = parser.parse_args()
    patterns = [pattern for pattern in arguments.only if pattern != "kernel"]
    names = [n for n in CONTENDERS if not arguments.only or any(fnmatchcase(n, pattern) for pattern in patterns)]
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if unknown:
        raise UserError(f"--only {unknown[0]} matches no contender; valid are kernel, {', '.join(CONTENDERS)}")

    level = kernels.chosen()
    figures: dict[str, float] = {}
    if level in LEVELS and (not arguments.only or "kernel" in arguments.only):
        figures = kernel_figures(level)
        text = ", ".join(f"{name} {value:.0f} GOP/s" for name, value in figures.items())
        print(f"1-bit product, 768 -> 3072, 1000 rows, {level}: {text}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # the ONNX exporter prints
            for name in names:
                models.path(name)
        settings = itertools.product(arguments.threads, arguments.seconds, arguments.batch)
        for threads, seconds, batch in settings if names else ():
            measured = measure(models, names, threads, seconds, batch, arguments.repeats, not arguments.no_memory)
            print(markdown(measured), flush=True)
            rows += measured
    if arguments.json:
        content = {"kernel": level, "figures": figures, "rows": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json_text(content) + "\n")
    if arguments.out and rows:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "inference.md").write_text(markdown(rows) + "\n")
        with (arguments.out / "inference.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in rows)
        picture(rows, arguments.out / "inference.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # for the whole process, so not inside `main`, which tests call
    try:
        main()
    except UserError as error:
        sys.exit(f"benchmarks.inference: {error}")
