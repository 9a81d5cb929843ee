"""Memory that a training needs, checked before it begins, and the error if it runs out all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pretrain.targets.feature_memory import free_bytes
from pretrain.training.settings import TrainingSettings
from upstreams.config import SAMPLE_RATE, ModelConfig
from upstreams.errors import UserError
from upstreams.model import AudioEncoder, without_values

# fp32: weight, gradient and AdamW's two moments. Muon has one moment less.
BYTES_PER_WEIGHT = 16
# What torch says in a RuntimeError if the CPU has no memory left, or if the system ended a process that reads audio.
EXHAUSTED = ("can't allocate memory", "annot allocate memory", "not enough memory", "is killed by signal: Killed")


@contextlib.contextmanager
def explained(device: torch.device, place: Callable[[], str]) -> Iterator[None]:
    """Raise UserError, which says what to lower, if the memory of the device or of the CPU runs out.

    place: what needed the memory, asked only then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (is_gpu or isinstance(error, MemoryError) or any(sign in str(error) for sign in EXHAUSTED)):
            raise
        raise UserError(
            f"the memory of {device if is_gpu else 'the CPU'} is too small for {place()}: lower micro_batch_seconds or "
            "workers, or set checkpointing=true, and run the same command again; the training resumes"
        ) from error


def check(config: ModelConfig, settings: TrainingSettings, device: torch.device, views: int) -> None:
    """Raise UserError if weights, optimizer and a micro-batch's activations exceed the device's free memory.

    views: crops of an utterance, which must fit into a micro-batch.
    """
    weights, per_second = required_bytes(config, settings.crop_seconds, settings.checkpointing)
    if settings.compute_dtype(device) == torch.bfloat16:
        per_second /= 2
    seconds = settings.seconds_per_micro_batch
    required, free = weights + per_second * seconds, free_bytes(device)
    if required <= free:
        return
    fits = int((free - weights) / per_second)
    advice = "use a smaller model"
    if fits >= views * settings.crop_seconds:
        advice = f"set micro_batch_seconds to {fits} or less"
    elif not settings.checkpointing:
        advice = "set checkpointing to true"
    raise UserError(
        f"{config.name} needs about {required / 1e9:.1f} GB to train on {seconds:g} s of audio at once, "
        f"but {free / 1e9:.1f} GB are free on {device}: {advice}"
    )


def required_bytes(config: ModelConfig, crop_seconds: float, checkpointing: bool = False) -> tuple[float, float]:
    """Return the bytes of weights with optimizer, and the bytes of activations per second of audio, in fp32.

    The activations are the tensors that autograd saves for the backward pass of one crop, on the meta device. With
    checkpointing they are what it keeps, and those of one block, which the backward pass computes again.
    """
    if checkpointing:
        weights, everything = required_bytes(config, crop_seconds)
        return weights, _saved_bytes(config, crop_seconds, True)[1] + everything / config.encoder.layers
    return _saved_bytes(config, crop_seconds, False)


def _saved_bytes(config: ModelConfig, crop_seconds: float, checkpointing: bool) -> tuple[float, float]:
    with without_values():
        model = AudioEncoder(config)
    model.encoder.checkpointing = checkpointing
    model.eval()  # in train mode layerdrop would skip blocks
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
    weights = BYTES_PER_WEIGHT * sum(p.numel() for p in model.parameters())
    return float(weights), sum(storage.nbytes() for storage in kept.values()) / crop_seconds
