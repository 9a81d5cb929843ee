"""Cost of reading audio: pre-training steps on audio files, compared with the same steps on random tensors.

    python -m benchmarks.loading data/mini/manifest/train.tsv --workers 0 1

A step is the forward and backward pass and the update of a model, on one torch thread. Steps on batches that worker
processes read ahead alternate with steps on random tensors of the same shapes. Figures are medians over the steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from pretrain.audio.data import Batch, BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import HubertPretraining, Objective, with_mask
from pretrain.objectives.masking import span_mask
from pretrain.training.optimizers import build_optimizers
from pretrain.training.settings import TrainingSettings
from upstreams.config import preset
from upstreams.cpu_training.fast_training import FastTraining
from upstreams.model import AudioEncoder

CLUSTERS = 100


def measure(manifest: Manifest, name: str, workers: int, steps: int, batch_seconds: float, crop: float) -> list[float]:
    """Return the median time of a step in ms: on random tensors, and on audio, including the time of waiting for it."""
    torch.manual_seed(0)
    config = preset(name)
    model = HubertPretraining(AudioEncoder(config), CLUSTERS, Objective(utterance_weight=0.0)).train()
    optimizers = build_optimizers(model, TrainingSettings(lr=1e-4, matrix_lr=1e-4), model.model.encoder.blocks)
    order = BatchOrder(manifest, config.downsample_rate, batch_seconds, crop, seed=0)
    batches = iter(loader(Crops(manifest, None, config.downsample_rate), order, 0, steps, workers=workers))

    def step(batch: Batch, number: int) -> None:
        frames = model.model.frame_count(batch.lengths)
        mask = span_mask(frames.tolist(), 0.65, 5, seed=number)
        labelled = Batch(batch.waveforms, batch.lengths, torch.randint(0, CLUSTERS, mask.shape))
        with FastTraining():
            loss, _ = model(with_mask(labelled, mask, frames, paired=False))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    times: list[list[float]] = [[], []]
    for number in range(steps):
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        noise = Batch(torch.randn_like(batch.waveforms) * 0.1, batch.lengths, batch.labels)
        # The first step with a new shape is slower, since kernels are prepared for it. So the two kinds alternate in
        # which runs first.
        for kind in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            step((noise, batch)[kind], number)
            times[kind].append(time.perf_counter() - started + waited * kind)
    return [statistics.median(kind[2:]) * 1e3 for kind in times]


def main() -> None:
    """Print a table with a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="sparseformer_dn_mini")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--crop-seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    manifest = Manifest.read(arguments.manifest)
    print("| workers | random tensors, ms per step | audio files, ms per step | ratio |\n|---|---|---|---|")
    for workers in arguments.workers:
        settings = (arguments.model, workers, arguments.steps, arguments.batch_seconds, arguments.crop_seconds)
        random, audio = measure(manifest, *settings)
        print(f"| {workers} | {random:.1f} | {audio:.1f} | {audio / random:.3f} |")


if __name__ == "__main__":
    main()
