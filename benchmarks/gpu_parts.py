"""The parts of `make gpu-check`: each measures one thing on a device and returns rows of a table.

Each also runs on a CPU at a small scale, which is how the parts are tested without a GPU.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch._dynamo.utils import counters

from benchmarks import downstream, quantization
from benchmarks.pretraining import audio, superbit_step, torchaudio_step, transformers_step
from benchmarks.timing import interleaved
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import HubertPretraining, Objective
from pretrain.objectives.masked_prediction import MaskedPrediction
from pretrain.training.settings import TrainingSettings
from pretrain.training.throughput import matmul_peak
from upstreams.config import SAMPLE_RATE, preset
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.packed.convert import pack
from upstreams.quantization.convert import calibrate, quantize

ENCODERS = ("transformer_mini", "conformer_mini", "squeezeformer_mini", "sparseformer_dn_mini", "sparseformer_sw_mini")
STEPS = 20  # of a training that counts how often the host waits


@dataclass(frozen=True)
class Scale:
    """Models and sizes. The defaults are those of a GPU."""

    models: tuple[str, ...] = ("conformer_s", "squeezeformer_s", "sparseformer_dn_s", "sparseformer_sw_s")
    rivals: bool = True  # also hubert_base, transformer_base, transformers and torchaudio
    crops: int = 11  # in a micro-batch; 11 of 15.6 s is 170 s of audio
    seconds: float = 15.6  # of a crop
    repeats: int = 10
    compiled: bool = True
    packed: str = "sparseformer_dn_s"
    corpora: Path = field(default=Path("data/mini"))
    task_steps: int = 200


@dataclass(frozen=True)
class Row:
    """One figure. wanted: the range that the project aims at, empty if there is none; ok: whether it is reached."""

    part: str
    name: str
    value: float
    unit: str
    wanted: str = ""
    ok: bool = True


def at_least(part: str, name: str, value: float, unit: str, low: float) -> Row:
    """Return a row whose value should be `low` or more."""
    return Row(part, name, value, unit, f"at least {low:g}", value >= low)


def at_most(part: str, name: str, value: float, unit: str, high: float) -> Row:
    """Return a row whose value should be `high` or less."""
    return Row(part, name, value, unit, f"at most {high:g}", value <= high)


@torch.no_grad()
def agreement(device: torch.device, scale: Scale) -> list[Row]:
    """Return the largest difference of the hidden states from those on the CPU, relative to their deviation."""
    rows = []
    for name in ENCODERS:
        torch.manual_seed(0)
        model = checkpoint.build(preset(name)).eval()
        waveforms, lengths = audio((2.0, 1.3), torch.device("cpu"))
        expected = torch.stack(model(waveforms, lengths))
        found = torch.stack(model.to(device)(waveforms.to(device), lengths.to(device))).cpu()
        error = float((found - expected).abs().max() / expected.std())
        rows.append(at_most("agreement", name, error, "deviations", 1e-2))
    return rows


def steps(device: torch.device, scale: Scale) -> list[Row]:
    """Return seconds of audio a second, utilisation and memory of pre-training steps: eager, compiled, and rivals'."""
    half = device.type == "cuda"
    waveforms, lengths = audio((scale.seconds,) * scale.crops, device)
    seconds = float(lengths.sum()) / SAMPLE_RATE
    peak = matmul_peak(device, torch.bfloat16 if half else torch.float32)
    functions: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    for name in (*(("hubert_base", "transformer_base") if scale.rivals else ()), *scale.models):
        for suffix, compiled in (("", False), (", compiled", True)) if scale.compiled else (("", False),):
            step = superbit_step(preset(name), waveforms, lengths, half, compiled)
            functions[name + suffix], flops[name + suffix] = step
    if scale.rivals:
        functions["transformers"] = transformers_step(waveforms, lengths, half)
        functions["torchaudio"] = torchaudio_step(waveforms, lengths, half)
    times = interleaved(functions, scale.repeats)
    rows = []
    for name, time in times.items():
        rows.append(Row("steps", name, seconds / time, "s of audio a second"))
        if name in flops:
            rows.append(Row("utilisation", name, 100 * flops[name] / time / peak, "% of a matrix product"))
    if scale.rivals:
        for name, low in (("hubert_base", 2.0), ("transformer_base", 6.0)):
            best = min(times[key] for key in times if key.startswith(name))
            rows.append(at_least("steps", f"transformers / {name}", times["transformers"] / best, "times", low))
    return rows


def graphs(device: torch.device, scale: Scale) -> list[Row]:
    """Return the graphs and breaks of compiled blocks over batches of three shapes."""
    rows = []
    for name in scale.models:
        torch._dynamo.reset()
        counters.clear()
        model = checkpoint.build(preset(name)).to(device).train()
        for block in model.encoder.blocks:
            block.compile(dynamic=True)
        for lengths in ((2.0, 1.5), (1.2, 1.0, 0.9), (3.0, 2.0, 2.5, 1.0)):
            waveforms, samples = audio(lengths, device)
            model.encoder(*model.embed(waveforms, samples))[-1].square().mean().backward()
        found = counters["stats"]["unique_graphs"]
        rows.append(at_most("graphs", name, found, "graphs", len(model.encoder.blocks)))
        rows.append(at_most("graphs", f"{name}, breaks", sum(counters["graph_break"].values()), "breaks", 0))
    return rows


def waits(device: torch.device, scale: Scale) -> list[Row]:
    """Return how often the host waits for the device in a step of the training loop, as CUDA's runtime reports it."""
    rows = []
    for name in scale.models:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            task = _training(name, device, Path(folder))
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            try:
                task.train(Path(folder) / "run", title=name)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        count = sum("synchroniz" in str(warning.message) for warning in caught)
        # Beside the steps, the start and the last state wait a few times.
        rows.append(at_most("waits", name, count / STEPS, "a step", 3))
    return rows


def _training(name: str, device: torch.device, folder: Path) -> MaskedPrediction:
    """Return a training on noise, of STEPS steps of two micro-batches."""
    random = np.random.default_rng(0)
    samples = [int(SAMPLE_RATE * seconds) for seconds in random.uniform(2.0, 3.0, 16)]
    for number, count in enumerate(samples):
        soundfile.write(folder / f"{number}.wav", random.normal(0, 0.1, count), SAMPLE_RATE)
    manifest = Manifest(folder, tuple(f"{n}.wav" for n in range(len(samples))), tuple(samples))
    labels = folder / "train.km"
    model = AudioEncoder(preset(name))
    frames = model.frame_count(torch.tensor(samples)).tolist()
    labels.write_text("".join(" ".join(["0"] * count) + "\n" for count in frames))
    module = HubertPretraining(model, 4, Objective(utterance_layer=1)).to(device).train()
    settings = TrainingSettings(batch_seconds=8, micro_batch_seconds=4, crop_seconds=1.0, save_every=1000)
    return MaskedPrediction(module, settings, manifest, labels, views=2, steps=STEPS, seed=0)


def binary(device: torch.device, scale: Scale) -> list[Row]:
    """Return the time of a 1-bit training step, relative to the float step of the same model."""
    rows = []
    for name in scale.models:
        batch = scale.crops, scale.seconds, device, scale.compiled
        functions: dict[str, Callable[[], object]] = {}
        for bits in ("w32a32", "w1a1"):
            step = quantization.training_step(name, bits, *batch)
            functions[bits] = functools.partial(quantization.seconds_of, step, device)
        times = interleaved(functions, scale.repeats)
        rows.append(at_most("binary", name, times["w1a1"] / times["w32a32"], "times the float step", 1.6))
    return rows


@torch.no_grad()
def packed(device: torch.device, scale: Scale) -> list[Row]:
    """Return the real-time factor of a packed model on the device, and its difference from the quantized model."""
    torch.manual_seed(0)
    model = AudioEncoder(preset(scale.packed))
    quantize(model, "w1a1")
    waveforms, lengths = audio((scale.seconds,) * 2, torch.device("cpu"))
    calibrate(model, waveforms, lengths)
    model.eval()
    expected = torch.stack(model(waveforms, lengths))
    ours = pack(model).to(device)
    waveforms, lengths = waveforms.to(device), lengths.to(device)
    error = float((torch.stack(ours(waveforms, lengths)).cpu() - expected).abs().mean() / expected.std())
    times = interleaved({"packed": lambda: torch.stack(ours(waveforms, lengths)).cpu()}, scale.repeats)
    factor = times["packed"] * SAMPLE_RATE / float(lengths.sum())
    return [
        at_most("packed", scale.packed, error, "deviations from the quantized model", 1e-2),
        Row("packed", scale.packed, factor, "real-time factor"),
    ]


def task(device: torch.device, scale: Scale) -> list[Row]:
    """Return the time of a step of SUPERB's keyword spotting by s3prl, and with the feature store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upstream = folder / f"{scale.packed}_untrained.safetensors"
        downstream.write_untrained(scale.packed, upstream)
        rows = []
        for mode in ("plain", "cold", "warm"):
            found = downstream.measure(
                *("ks", mode),
                steps=scale.task_steps,
                checkpoint=upstream,
                corpora=scale.corpora,
                out=folder,
                device=device.type,
            )
            rows.append(Row("task", f"ks, {mode}", 1000 * found["wall_seconds"] / scale.task_steps, "ms a step"))
    return rows


PARTS: dict[str, Callable[[torch.device, Scale], list[Row]]] = {
    part.__name__: part for part in (agreement, waits, graphs, steps, binary, packed, task)
}
