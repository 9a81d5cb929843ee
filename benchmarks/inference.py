"""How fast packed models are, against the same models in floating point and int8, and against public ones.

    python -m benchmarks.inference --out runs/inference                       # everything: about two hours
    python -m benchmarks.inference --only 'transformer_base/*' --threads 1 --seconds 10 --batch 1
    python -m benchmarks.inference --only kernel --json kernel.json

All contenders of one setting run in turn in one process, and figures are medians; peak memory is that of a process of
its own. Writes a table (CSV and Markdown) and a picture of real-time factor against storage. Weights are random: speed
does not depend on them. The map of exported hidden states, which public models do not have, is left out everywhere.
SUPERBIT_KERNEL chooses the level of the packed models' kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib
import io
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleaved
from upstreams.errors import UserError
from upstreams.packed import kernels

SAMPLE_RATE = 16_000
MODELS = ("transformer_base", "conformer_s", "squeezeformer_xs", "sparseformer_dn_s", "sparseformer_sw_s")
VARIANTS = ("fp32", "int8", "onnx_int8", "w1a32", "w1a8", "w1a1")
WITHOUT_TORCH = ("transformer_base/w1a1_runtime", "sparseformer_dn_s/w1a1_runtime", "sparseformer_sw_s/w1a1_runtime")
# transformers' HubertModel of HuBERT Base's shape, and DistilHuBERT's shape in this project.
PUBLIC = ("hubert/fp32", "hubert/onnx_int8", "distilhubert/fp32")
CONTENDERS = (*PUBLIC, *(f"{model}/{variant}" for model in MODELS for variant in VARIANTS), *WITHOUT_TORCH)
PEAK_ROUNDS = 2_000_000
OPERATIONS = 12 * 16 * 32 * 2  # xor and popcount of a round of the kernel's peak, counted as multiply and add

Run = Callable[[np.ndarray], object]  # waveforms (batch, samples)


@dataclass
class Row:
    """One line of the table."""

    name: str
    kernel: str  # of packed models, "" for the others
    threads: int
    seconds: float
    batch: int
    milliseconds: float
    real_time_factor: float
    megabytes: float  # on disk
    peak_megabytes: float  # of a process that loads the model and runs it once


class Models:
    """Contenders, each made once and kept as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The contender's file, written when it is not there yet."""
        model, _, variant = name.partition("/")
        path = self.folder / f"{model}_{variant.removesuffix('_runtime')}"
        if path.is_file():
            return path
        if variant == "onnx_int8":
            self._quantize_onnx(model, path)
        elif variant.startswith("w1"):
            self._pack(model, variant.removesuffix("_runtime"), path)
        else:
            import torch

            torch.save(self._float(model) if variant == "fp32" else self._dynamic(model), path)
        return path

    def load(self, name: str, threads: int) -> Run:
        """A function that runs the contender; what it needs is imported here."""
        path, variant = self.path(name), name.partition("/")[2]
        if variant.endswith("_runtime"):
            from upstreams.packed.runtime import Runtime

            runtime = Runtime(path, threads)
            return lambda waveforms: [runtime(waveform) for waveform in waveforms]
        if variant == "onnx_int8":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(path), options)
            wanted = [value.name for value in session.get_inputs()]

            def run(waveforms: np.ndarray) -> object:
                lengths = np.full(len(waveforms), waveforms.shape[1], np.int64)
                return session.run(None, {k: v for k, v in zip(wanted, (waveforms, lengths), strict=False)})

            return run
        import torch

        importlib.import_module("upstreams.s3prl.compat")  # lets transformers, whose classes are in the file, import
        from upstreams.packed import convert

        module = convert.load(path) if variant.startswith("w1") else torch.load(path, weights_only=False)

        def run_torch(waveforms: np.ndarray) -> object:
            torch.set_num_threads(threads)
            with torch.no_grad():
                return module(torch.from_numpy(waveforms))

        return run_torch

    def _float(self, model: str) -> Any:
        import torch

        torch.manual_seed(0)
        if model == "hubert":
            importlib.import_module("upstreams.s3prl.compat")  # lets transformers import
            from transformers import HubertConfig, HubertModel

            module = HubertModel(HubertConfig(attn_implementation="sdpa")).eval()  # type: ignore[call-arg]
            # As for inference: the positions' weight is not computed anew in every call.
            convolution = module.encoder.pos_conv_embed.conv
            torch.nn.utils.parametrize.remove_parametrizations(convolution, "weight")
            convolution._load_state_dict_pre_hooks.clear()  # of weight normalisation, which cannot be pickled
            return module
        return _built(model, "w32a32")

    def _dynamic(self, model: str) -> Any:
        import torch

        return torch.ao.quantization.quantize_dynamic(self._float(model), {torch.nn.Linear})

    def _pack(self, model: str, bits: str, path: Path) -> None:
        import torch

        from upstreams.packed import convert
        from upstreams.quantization.convert import calibrate

        torch.manual_seed(0)
        quantized = _built(model, bits)
        calibrate(quantized, torch.randn(1, 2 * SAMPLE_RATE) * 0.1, torch.tensor([2 * SAMPLE_RATE]))
        convert.save(path, convert.pack(quantized), {})

    def _quantize_onnx(self, model: str, path: Path) -> None:
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic

        graph = self.folder / f"{model}.onnx"
        if model == "hubert":
            any_size = torch.export.Dim.DYNAMIC
            program = torch.onnx.export(
                self._float(model),
                (torch.zeros(2, SAMPLE_RATE),),
                dynamo=True,
                dynamic_shapes={"input_values": {0: any_size, 1: any_size}},
                verbose=False,
            )
            assert program is not None
            program.save(graph, external_data=False)
        else:
            from upstreams.formats.onnx_export import export

            export(self._float(model), graph)
        quantize_dynamic(graph, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _built(name: str, bits: str) -> Any:
    from upstreams.config import preset
    from upstreams.formats.checkpoint import build

    return build(dataclasses.replace(preset(name), bits=bits, output_map=False)).eval()


def kernel_figures(kernel: kernels.Native) -> dict[str, float]:
    """The 1-bit product 768 -> 3072 of 1000 rows, and the instructions' own peak where it is known, in GOP/s."""
    from upstreams.packed.linear import BinaryLinear, Packed
    from upstreams.quantization.spec import Bits

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (3072, 96), dtype=np.uint8)
    floats = np.ones(3072, np.float32)
    one = np.ones((), np.float32)
    layer = BinaryLinear(Packed(Bits(1, 1), 768, codes, floats, floats, one, np.zeros(768, np.float32), False))
    bits = layer.binarize(rng.standard_normal((1000, 768)).astype(np.float32), kernel)
    limit = np.full(3072, 384, np.int32)
    functions: dict[str, Callable[[], object]] = {
        "float output": lambda: layer.floats(bits, kernel),
        "bit output": lambda: kernel.binary_to_bits(bits, layer.weights, 3072, limit),
    }
    has_peak = kernel.level == kernels.LEVELS.index("avx512")
    if has_peak:
        functions["popcount peak"] = lambda: kernel.popcount_peak(PEAK_ROUNDS)
    seconds = interleaved(functions, repeats=31)
    figures = {name: 2 * 768 * 3072 * 1000 / seconds[name] / 1e9 for name in ("float output", "bit output")}
    if has_peak:
        figures["popcount peak"] = PEAK_ROUNDS * OPERATIONS / seconds["popcount peak"] / 1e9
    return figures


def peak_memory(folder: Path, name: str, threads: int, seconds: float, batch: int) -> float:
    """Megabytes that a process takes at most that loads a contender and runs it once."""
    path, shape = Models(folder).path(name), (batch, int(seconds * SAMPLE_RATE))
    program = f"import numpy as np\nwaveforms = np.zeros({shape}, np.float32)\n"
    if name.endswith("_runtime"):  # on a device nothing else is imported
        program += (
            f"from upstreams.packed.runtime import Runtime\nruntime = Runtime({str(path)!r}, {threads})\n"
            "states = [runtime(waveform) for waveform in waveforms]\n"
        )
    else:
        program += (
            "from pathlib import Path\nfrom benchmarks.inference import Models\n"
            f"Models(Path({str(folder)!r})).load({name!r}, {threads})(waveforms)\n"
        )
    program += "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def measure(
    models: Models, names: list[str], threads: int, seconds: float, batch: int, repeats: int, memory: bool
) -> list[Row]:
    """All contenders in turn at one setting."""
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


def markdown(rows: list[Row]) -> str:
    """The table, with what is slowest first in each setting."""
    head = "| model | kernel | threads | s | batch | ms | real-time factor | MB on disk | MB peak |"
    lines = [head, "|" + "---|" * 9]
    for row in rows:
        values = (row.threads, f"{row.seconds:g}", row.batch, f"{row.milliseconds:.1f}", f"{row.real_time_factor:.5f}")
        cells = (row.name, row.kernel, *values, f"{row.megabytes:.2f}", f"{row.peak_megabytes:.0f}")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def picture(rows: list[Row], path: Path) -> None:
    """Real-time factor against storage of the first setting: a colour a model, a marker a way of computing it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    first = rows[0]
    setting = (first.threads, first.seconds, first.batch)
    points = {row.name: row for row in rows if (row.threads, row.seconds, row.batch) == setting}
    models = list(dict.fromkeys(name.partition("/")[0] for name in points))
    variants = list(dict.fromkeys(name.partition("/")[2] for name in points))
    colours = dict(zip(models, pyplot.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    markers = dict(zip(variants, "osD^vP*", strict=False))
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for model in models:
        own = [row for name, row in points.items() if name.partition("/")[0] == model]
        axes.plot([r.megabytes for r in own], [r.real_time_factor for r in own], color=colours[model], alpha=0.3)
        for row in own:
            marker = markers[row.name.partition("/")[2]]
            axes.plot(row.megabytes, row.real_time_factor, marker, color=colours[model], markersize=8)
    of_models = [Line2D([], [], color=colours[model], linewidth=4, label=model) for model in models]
    of_variants = [Line2D([], [], color="gray", marker=markers[v], linestyle="", label=v) for v in variants]
    axes.add_artist(axes.legend(handles=of_models, loc="upper left", fontsize=8))
    axes.legend(handles=of_variants, loc="lower right", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel="real-time factor")
    axes.set_title(
        f"{first.threads} thread{'s' if first.threads > 1 else ''}, {first.seconds:g} s, batch {first.batch}"
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="contenders, with * as wildcard; `kernel` alone")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", nargs="+", type=float, default=[2.0, 10.0, 30.0], help="lengths of audio")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--out", type=Path, help="folder for inference.csv, inference.md and inference.png")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    patterns = [pattern for pattern in arguments.only if pattern != "kernel"]
    names = [n for n in CONTENDERS if not arguments.only or any(fnmatchcase(n, pattern) for pattern in patterns)]
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if unknown:
        raise UserError(f"--only {unknown[0]} matches no contender: there are kernel, {', '.join(CONTENDERS)}")

    level = kernels.chosen()
    figures: dict[str, float] = {}
    if level in kernels.LEVELS and (not arguments.only or "kernel" in arguments.only):
        figures = kernel_figures(kernels.native(level))
        told = ", ".join(f"{name} {value:.0f} GOP/s" for name, value in figures.items())
        print(f"w1a1 product, 768 -> 3072, 1000 rows, {level}: {told}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # of the exporter, which talks
            for name in names:
                models.path(name)
        settings = itertools.product(arguments.threads, arguments.seconds, arguments.batch)
        for threads, seconds, batch in settings if names else ():
            measured = measure(models, names, threads, seconds, batch, arguments.repeats, not arguments.no_memory)
            print(markdown(measured), flush=True)
            rows += measured
    if arguments.json:
        content = {"kernel": level, "figures": figures, "rows": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.out and rows:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "inference.md").write_text(markdown(rows) + "\n")
        with (arguments.out / "inference.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in rows)
        picture(rows, arguments.out / "inference.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"benchmarks.inference: {error}")
