"""Training time of a quantized model, relative to the float model.

    python -m benchmarks.quantization --threads 1
    python -m benchmarks.quantization --models transformer_base conformer_m --compile     # on a GPU

A step is the forward pass, the backward pass and the update by both optimizers, on random audio. On a GPU it runs under
bfloat16 autocast, as distillation does. Float and quantized steps alternate, so that other load on the machine affects
both; the figures are medians. --compile applies torch.compile to the encoders' blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pretrain.training.optimizers import build_optimizers
from pretrain.training.settings import TrainingSettings
from upstreams.config import SAMPLE_RATE, preset
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate, quantize


def training_step(
    name: str, bits: str, utterances: int, seconds: float, device: torch.device, compiled: bool
) -> Callable[[], None]:
    """Return a function that runs one training step of the model."""
    torch.manual_seed(0)
    model = AudioEncoder(preset(name)).to(device)
    waveforms = 0.1 * torch.randn(utterances, int(seconds * SAMPLE_RATE), device=device)
    lengths = torch.full((utterances,), waveforms.shape[1], device=device)
    quantize(model, bits)
    model.to(device)
    calibrate(model, waveforms[:1], lengths[:1])
    model.train()
    optimizers = build_optimizers(
        model, TrainingSettings(lr=1e-4, matrix_lr=1e-4, weight_decay=0.0), model.encoder.blocks
    )
    if compiled:
        for block in model.encoder.blocks:
            block.compile()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = model(waveforms, lengths)
            loss = torch.stack([state.float().square().mean() for state in states]).sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """Return the wall-clock seconds of one call, including the work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print one row for each model and bit width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sparseformer_dn_mini", "conformer_mini"])
    parser.add_argument("--bits", nargs="+", default=["w1a32", "w1a1", "w8a8"])
    parser.add_argument("--utterances", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each utterance")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"{place}, torch {torch.__version__}, {arguments.utterances} x {arguments.seconds:g} s, medians\n")
    print("| model | bits | float step (ms) | quantized step (ms) | ratio |\n|---|---|---|---|---|")
    batch = arguments.utterances, arguments.seconds, device, arguments.compile
    for name in arguments.models:
        steps = {bits: training_step(name, bits, *batch) for bits in ("w32a32", *arguments.bits)}
        times: dict[str, list[float]] = {bits: [] for bits in steps}
        for repeat in range(arguments.repeats + 3):
            for bits, step in steps.items():
                taken = seconds_of(step, device)
                if repeat >= 3:  # the first steps compile and fill caches
                    times[bits].append(taken)
        plain = statistics.median(times["w32a32"])
        for bits in arguments.bits:
            quantized = statistics.median(times[bits])
            print(f"| {name} | {bits} | {1000 * plain:.1f} | {1000 * quantized:.1f} | {quantized / plain:.2f} |")


if __name__ == "__main__":
    main()
