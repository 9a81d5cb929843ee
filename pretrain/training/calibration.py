"""Statistics that are measured once, before or after training: normalisation and the quantizers' scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.audio.data import BatchOrder, Crops, collate
from pretrain.audio.manifest import Manifest
from pretrain.training.settings import TrainingSettings
from upstreams.errors import UserError
from upstreams.frontend import LogMelFrontEnd
from upstreams.model import AudioEncoder, in_eval_mode
from upstreams.quantization.convert import calibrate

BATCHES, SECONDS = 8, 60.0  # batches, and seconds of audio in each

Waveforms = tuple[Tensor, Tensor]  # (batch, samples) and lengths (batch,) in samples


def calibration_batches(manifest: Manifest, settings: TrainingSettings, hop: int, seed: int) -> list[Waveforms]:
    """Return a few batches of crops, which depend neither on the world size nor on how a step is divided.

    hop: samples per frame of the encoder. Rank 0 measures all statistics, so only it reads this audio. Raises UserError
    if none of the files can be read.
    """
    order = BatchOrder(manifest, hop, min(settings.batch_seconds, SECONDS), settings.crop_seconds, seed)
    crops = Crops(manifest, None, hop)
    batches = [collate([crops[item] for item in items]) for items in order.batches(0, BATCHES)]
    found = [(batch.waveforms, batch.lengths) for batch in batches if len(batch.lengths)]
    if not found:
        raise UserError(
            f"none of the {sum(batch.skipped for batch in batches)} audio files that the statistics are measured on "
            "could be read; the lines above name them"
        )
    return found


def measure(model: AudioEncoder, batches: list[Waveforms]) -> None:
    """Measure all statistics of an untrained model: log-mel, batch normalisation, and the output map."""
    fit_log_mel(model, batches)
    fit_batch_norm(model, batches)
    model.fit_output(batches)


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


@torch.no_grad()
def fit_batch_norm(model: AudioEncoder, batches: list[Waveforms]) -> None:
    """Set batch normalisation's running statistics to their mean over the batches, without dropout and layerdrop."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momentum = [norm.momentum for norm in norms]
    with in_eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for waveforms, lengths in batches:
            model.encoder(*model.embed(waveforms, lengths))
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
