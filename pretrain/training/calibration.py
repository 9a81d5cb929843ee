"""Statistics that are measured once, before or after training: normalisation and the quantizers' scales."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.audio.data import BatchOrder, Crops, collate
from pretrain.audio.manifest import Manifest
from pretrain.training.settings import TrainingSettings
from upstreams.frontend import LogMelFrontEnd
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate

BATCHES = 8

Waveforms = tuple[Tensor, Tensor]  # (batch, samples) and lengths (batch,) in samples


def calibration_batches(manifest: Manifest, settings: TrainingSettings, hop: int, seed: int) -> list[Waveforms]:
    """Return a few batches of crops, the same ones on every rank. hop: samples per frame of the encoder.

    settings: as the user gave them, so that the batches do not depend on the world size.
    """
    seconds = settings.micro_batch_seconds or settings.batch_seconds
    order = BatchOrder(manifest, hop, seconds, settings.crop_seconds, seed)
    crops = Crops(manifest, None, hop)
    batches = (collate([crops[item] for item in items]) for items in order.batches(0, BATCHES))
    return [(batch.waveforms, batch.lengths) for batch in batches]


def calibrate_on_longest(model: AudioEncoder, batches: list[Waveforms]) -> None:
    """Set the quantizers' scales from the batch of longest crops: `calibrate` uses only unpadded utterances of it."""
    calibrate(model, *max(batches, key=lambda batch: batch[0].shape[1]))


@torch.no_grad()
def fit_log_mel(model: AudioEncoder, batches: list[Waveforms]) -> None:
    """Set the log-mel front-end's mean and deviation of each mel bin; a waveform front-end has no such statistics."""
    if not isinstance(model.front_end, LogMelFrontEnd):
        return
    log_mel = model.front_end.log_mel
    frames = torch.cat(
        [
            log_mel.raw(waveform[None, :length])[0]
            for waveforms, lengths in batches
            for waveform, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
    )
    log_mel.mean.copy_(frames.mean(0))
    log_mel.std.copy_(frames.std(0))
