"""`superbit pretrain`: labels, first iteration, features, labels, second iteration, each skipped when done."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain.data import Batch, BatchOrder, Crops, loader, read_labels
from pretrain.hubert import HubertPretraining
from pretrain.labels import write_labels
from pretrain.manifest import Manifest
from pretrain.masking import span_mask
from pretrain.recipes import Iteration, Recipe
from pretrain.trainer import fit, optimizers
from upstreams import checkpoint
from upstreams.config import from_dict
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.frontend import HOP, LogMelFrontEnd
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate, inherit, quantize, summary
from upstreams.versions import versions

CALIBRATION_BATCHES = 8


def pretrain(recipe: Recipe, manifest_path: Path, out: Path, labels: Path, seed: int) -> Path:
    """Pre-train `recipe.model` on a manifest and return its checkpoint, OUT/checkpoints/<model>.safetensors.

    With `quantization` in the recipe the model is quantized from the first step and the checkpoint is <model>_<bits>.
    Beside it lies <model>_untrained.safetensors, the float initialisation that training started from. `labels` is where
    MFCC targets are kept, which runs of one seed share; OUT/pretrain holds the run. A run that was interrupted goes on.
    Raises UserError on bad data, bad bits or overrides, or a loss that is not finite.
    """
    name = recipe.name
    final = out / "checkpoints" / f"{name}.safetensors"
    run = out / "pretrain" / name
    manifest = Manifest.read(manifest_path)
    about = {
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "manifest": {"utterances": len(manifest), "hours": round(manifest.hours, 4)},
        **versions(),
    }
    if is_finished(final, about, ("seed", "manifest"), recipe, "recipe"):
        return final
    torch.manual_seed(seed)
    model = AudioEncoder(recipe.config)
    quantized = copy.deepcopy(model)
    sites = quantize(quantized, recipe.quantization.bits, recipe.quantization.config)
    with atomic_write(run / "config.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    statistics = calibration_batches(manifest, recipe, recipe.config.downsample_rate, seed)
    fit_log_mel(model, statistics)
    model.fit_output(statistics)
    untrained = out / "checkpoints" / f"{recipe.model}_untrained.safetensors"
    checkpoint.save(untrained, model, None, {**about, "stage": "untrained"})
    if sites:
        inherit(quantized, model)
        model = quantized
        calibrate(model, *max(statistics, key=lambda batch: batch[0].shape[1]))
        tqdm.write("\n".join(f"{name}: {line}" for line in summary(sites)))

    first, second = recipe.iterations.mfcc, recipe.iterations.features
    fraction, subsampling = recipe.cluster_fraction, recipe.config.downsample_rate // HOP
    mfcc_labels = write_labels(
        manifest,
        labels / f"mfcc{first.clusters}",
        first.clusters,
        seed,
        fraction,
        subsampling,
        n_init=recipe.cluster_starts,
    )
    module = _iterate(model, recipe, first, manifest, mfcc_labels, run / "iteration1", seed)
    feature_labels = write_labels(
        manifest,
        run / f"labels_layer{second.layer}_{second.clusters}",
        second.clusters,
        seed,
        fraction,
        subsampling,
        model,
        second.layer,
        recipe.cluster_starts,
    )
    module = _iterate(model, recipe, second, manifest, feature_labels, run / "iteration2", seed + 1)
    model.eval()
    model.fit_output(statistics)
    checkpoint.save(final, model, module.head, {**about, "stage": "pretrained"})
    return final


def is_finished(final: Path, about: dict[str, Any], keys: tuple[str, ...], settings: Any, key: str) -> bool:
    """Whether the checkpoint `final` exists with the same provenance under `keys` and `settings` under `key`."""
    if not final.is_file():
        return False
    _, _, provenance = checkpoint.read(final)
    same = json.loads(json.dumps(about))
    return all(provenance.get(k) == same[k] for k in keys) and same_settings(provenance.get(key), settings)


def same_settings(saved: Any, settings: Any) -> bool:
    """Whether `saved`, the dictionary of an earlier run, means `settings`; keys it lacks had their defaults then."""
    try:
        return from_dict(type(settings), saved, "saved settings") == settings
    except UserError:
        return False


def _iterate(
    model: AudioEncoder,
    recipe: Recipe,
    iteration: Iteration,
    manifest: Manifest,
    labels: Path,
    folder: Path,
    seed: int,
) -> HubertPretraining:
    """Masked prediction of `labels` for `iteration.steps` steps; returns the module around `model`."""
    torch.manual_seed(seed)
    module = HubertPretraining(model, iteration.clusters, recipe.objective).train()
    hop = recipe.config.downsample_rate
    crops = Crops(manifest, read_labels(labels, manifest, hop), hop)
    order = BatchOrder(manifest, hop, recipe.batch_seconds, recipe.crop_seconds, seed, recipe.views)

    def losses(batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        frames = model.frame_count(batch.lengths).tolist()
        mask = span_mask(frames, recipe.objective.mask_prob, recipe.objective.mask_length, seed=seed * 1_000_003 + step)
        # A file that could not be read leaves a crop without its partner.
        paired = recipe.views == 2 and batch.skipped == 0
        return module(batch.waveforms, batch.lengths, batch.labels, mask, paired)

    def batches(first: int) -> Iterable[Batch]:
        return loader(crops, order, first, iteration.steps)

    fit(
        module,
        optimizers(
            module, recipe.lr, recipe.matrix_lr, recipe.weight_decay, model.encoder.blocks, recipe.quantization.scale_lr
        ),
        batches,
        losses,
        iteration.steps,
        folder,
        warm_up=recipe.warm_up,
        clip=recipe.clip,
        title=f"{recipe.name} {folder.name}",
    )
    return module


class Cropping(Protocol):
    """What a recipe says of its batches."""

    @property
    def batch_seconds(self) -> float: ...
    @property
    def crop_seconds(self) -> float: ...


def calibration_batches(manifest: Manifest, cropping: Cropping, hop: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """A few batches of (waveforms, lengths) for statistics that are fixed once: normalisation, quantizers' scales."""
    order = BatchOrder(manifest, hop, cropping.batch_seconds, cropping.crop_seconds, seed)
    batches = loader(Crops(manifest, None, hop), order, 0, CALIBRATION_BATCHES)
    return [(batch.waveforms, batch.lengths) for batch in batches]


@torch.no_grad()
def fit_log_mel(model: AudioEncoder, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Set the front-end's normalisation to the mean and deviation of each mel bin over the batches."""
    if not isinstance(model.front_end, LogMelFrontEnd):
        return  # HuBERT's convolutions need no statistics
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
