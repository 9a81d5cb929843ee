"""Whether a recipe fits the device, told before training begins."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from pretrain.training.loop import Training
from upstreams.config import SAMPLE_RATE, ModelConfig
from upstreams.errors import UserError
from upstreams.model import AudioEncoder

# fp32: weight, gradient, AdamW's two moments; Muon keeps one.
BYTES_OF_A_WEIGHT = 16


def check(config: ModelConfig, training: Training, device: torch.device) -> None:
    """Raise UserError when weights, optimizer and a micro-batch's activations exceed the device's free memory."""
    weights, second = needs(config, training.crop_seconds)
    if training.dtype(device) == torch.bfloat16:
        second /= 2
    wanted, there = weights + second * training.seconds_at_once, free(device)
    if wanted <= there:
        return
    fits = int((there - weights) / second)
    advice = f"set micro_batch_seconds to {fits} or less" if fits >= training.crop_seconds else "take a smaller model"
    raise UserError(
        f"{config.name} needs about {wanted / 1e9:.1f} GB to train on {training.seconds_at_once:g} s of audio at once, "
        f"but {there / 1e9:.1f} GB are free on {device}: {advice}"
    )


def needs(config: ModelConfig, crop_seconds: float) -> tuple[float, float]:
    """Bytes of weights and optimizer, and bytes of activations kept for the backward pass a second of audio, in fp32.

    Counted on the meta device: what autograd saves of one crop.
    """
    with torch.device("meta"):
        model = AudioEncoder(config)
    model.eval()  # batch normalisation in training picks out valid frames, which have no number there
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    samples = int(crop_seconds * SAMPLE_RATE)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedded, frames = model.embed(
            torch.empty(1, samples, device="meta"), torch.empty(1, dtype=torch.long, device="meta")
        )
        model.encoder(embedded, frames)
    weights = BYTES_OF_A_WEIGHT * sum(p.numel() for p in model.parameters())
    return float(weights), sum(storage.nbytes() for storage in kept.values()) / crop_seconds


def free(device: torch.device) -> float:
    """Bytes of memory that can be had; the machine's are shared by the processes that torchrun starts on it."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return float("inf")
