"""`superbit pretrain`: labels, iteration, features, labels, iteration ... as stages, each skipped when it is done."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain.audio.data import Batch, BatchOrder, Crops, collate, loader
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import Counts, HubertPretraining, MaskedBatch, with_mask
from pretrain.objectives.masking import span_mask
from pretrain.recipes import Iteration, Recipe
from pretrain.targets.label_files import read_labels
from pretrain.targets.labels import write_labels, write_valid_labels
from pretrain.training import distributed, memory
from pretrain.training.loop import Training, compile_blocks, fit, optimizers, settled
from pretrain.training.throughput import step_flops
from upstreams.config import HOP, SAMPLE_RATE, from_dict
from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write
from upstreams.formats import checkpoint
from upstreams.frontend import LogMelFrontEnd
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate, inherit, quantize, summary
from upstreams.versions import versions

CALIBRATION_BATCHES = 8


def stages(recipe: Recipe) -> list[str]:
    """The names of a recipe's stages, in order: labels1, iteration1, labels2, iteration2 ... teacher, export."""
    names = [f"{what}{n}" for n in range(1, len(recipe.iterations) + 1) for what in ("labels", "iteration")]
    return [*names, *(["teacher"] if recipe.teacher.name else []), "export"]


def pretrain(
    recipe: Recipe,
    manifest_path: Path,
    out: Path,
    labels: Path,
    seed: int,
    stage: str | None = None,
    valid_path: Path | None = None,
) -> Path:
    """Pre-train `recipe.model` on a manifest and return its checkpoint, OUT/checkpoints/<model>.safetensors.

    With `quantization` in the recipe the model is quantized from the first step and the checkpoint is <model>_<bits>.
    Beside it lies <model>_untrained.safetensors, the float initialisation that training started from. `labels` is where
    MFCC targets are kept, which runs of one seed share; OUT/pretrain holds the run. A run that was interrupted goes on.
    stage: stop after this one of `stages`; return what it wrote. valid_path: a manifest whose loss is logged with every
    state and says which of them is the best; it changes nothing of what is trained.
    Raises UserError on bad data, bad bits or overrides, too little memory, or when gradients stop being finite.
    """
    if stage is not None and stage not in stages(recipe):
        raise UserError(f"the recipe has no stage {stage!r}: {nearest(stage, stages(recipe))}")
    device = distributed.join()
    final = out / "checkpoints" / f"{recipe.name}.safetensors"
    manifest = Manifest.read(manifest_path)
    valid = Manifest.read(valid_path) if valid_path is not None else None
    about = {
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "manifest": {"utterances": len(manifest), "hours": round(manifest.hours, 4)},
        **versions(),
    }
    if is_finished(final, about, ("seed", "manifest"), recipe, "recipe"):
        return final
    asked, recipe = recipe, settled(recipe, out / "pretrain" / recipe.name / "config.json")
    memory.check(recipe.config, recipe, device)
    distributed.share(recipe.micro_batches)
    about["micro_batches"] = recipe.micro_batches
    return _Pretraining(recipe, asked, manifest, valid, out, labels, seed, about, device).run(stage or "export")


class _Pretraining:
    """The stages of one run and what they share."""

    def __init__(
        self,
        recipe: Recipe,
        asked: Recipe,
        manifest: Manifest,
        valid: Manifest | None,
        out: Path,
        labels: Path,
        seed: int,
        about: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.valid = valid
        self.asked = asked  # the recipe as it was given, before its micro-batches were settled
        self.recipe, self.manifest, self.out, self.labels, self.seed = recipe, manifest, out, labels, seed
        self.about, self.device = about, device
        self.folder = out / "pretrain" / recipe.name
        self.hop = recipe.config.downsample_rate
        torch.manual_seed(seed)
        self.model = AudioEncoder(recipe.config)

    def run(self, last: str) -> Path:
        """Go through the stages until `last` is done."""
        recipe = self.recipe
        model, statistics = self._initialise()
        self.model = model.to(self.device)
        start = copy.deepcopy(self.model.state_dict())
        module = None
        for number, iteration in enumerate(recipe.iterations, start=1):
            labels = self._labels(number, iteration)
            if last == f"labels{number}":
                return labels
            if iteration.from_scratch:
                self.model.load_state_dict(start)
            folder = self.folder / f"iteration{number}"
            module = self._iterate(iteration, labels, folder, self.seed + number - 1)
            if last == f"iteration{number}":
                return folder
        if recipe.teacher.name:
            from pretrain.objectives.teacher import learn_from_teacher

            learn_from_teacher(self.model, recipe, self.manifest, self.folder / "teacher", self.seed, self.device)
            if last == "teacher":
                return self.folder / "teacher"
        final = self.out / "checkpoints" / f"{recipe.name}.safetensors"
        if distributed.rank() == 0:
            self.model.eval()
            self.model.fit_output([(w.to(self.device), n.to(self.device)) for w, n in statistics])
            head = module.head if module is not None and not recipe.teacher.name else None
            checkpoint.save(final, self.model, head, {**self.about, "stage": "pretrained"})
        distributed.wait()
        return final

    def _initialise(self) -> tuple[AudioEncoder, list[tuple[Tensor, Tensor]]]:
        """The model that training starts from, and the batches that its fixed statistics are of."""
        recipe, model = self.recipe, self.model
        quantized = copy.deepcopy(model)
        sites = quantize(quantized, recipe.quantization.bits, recipe.quantization.config)
        statistics = calibration_batches(self.manifest, self.asked, self.hop, self.seed)
        fit_log_mel(model, statistics)
        model.fit_output(statistics)  # in every process: it moves batch normalisation's running statistics as well
        if distributed.rank() == 0:
            self._claim_folder()
            untrained = self.out / "checkpoints" / f"{recipe.model}_untrained.safetensors"
            checkpoint.save(untrained, model, None, {**self.about, "stage": "untrained"})
        if sites:
            inherit(quantized, model)
            model = quantized
            calibrate(model, *max(statistics, key=lambda batch: batch[0].shape[1]))
            if distributed.rank() == 0:
                tqdm.write("\n".join(f"{recipe.name}: {line}" for line in summary(sites)))
        return model, statistics

    def _claim_folder(self) -> None:
        """Say in config.json whose run this is. Raises UserError when the folder holds another one."""
        file = self.folder / "config.json"
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            same = all(before.get(key) == self.about[key] for key in ("seed", "manifest"))
            if not (same and same_settings(before.get("recipe"), self.asked)):
                raise UserError(
                    f"{self.folder} holds a run of another recipe, seed or manifest (config.json): "
                    "give another --out, or remove it to start anew"
                )
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")

    def _labels(self, number: int, iteration: Iteration) -> Path:
        """Targets of an iteration; the first process makes them."""
        layer, clusters = iteration.layer, iteration.clusters
        out = self.folder / f"labels{number}_layer{layer}_{clusters}" if layer else self.labels / f"mfcc{clusters}"
        if distributed.rank() == 0:
            model, recipe = self.model if layer else None, self.recipe
            write_labels(
                self.manifest,
                out,
                clusters=clusters,
                seed=self.seed,
                fraction=recipe.cluster_fraction,
                subsampling=self.hop // HOP,
                model=model,
                layer=layer,
                n_init=recipe.cluster_starts,
                workers=recipe.workers,
            )
            if self.valid is not None:
                subsampling = self.hop // HOP
                write_valid_labels(self.valid, out, subsampling, model=model, layer=layer, workers=recipe.workers)
        distributed.wait()
        return out / "train.km"

    def _iterate(self, iteration: Iteration, labels: Path, folder: Path, seed: int) -> HubertPretraining:
        """Masked prediction of `labels` for `iteration.steps` steps; returns the module around the model."""
        recipe = self.recipe
        torch.manual_seed(seed)
        module = HubertPretraining(self.model, iteration.clusters, recipe.objective).to(self.device).train()
        task = MaskedPrediction(module, recipe, self.manifest, labels, iteration.steps, seed)
        updates = optimizers(module, recipe, self.model.encoder.blocks)
        validation = None
        if self.valid is not None:
            validation = Validation(task, self.valid, labels.with_name("valid.km"))
        title = f"{recipe.name} {folder.name}"
        fit(task, updates, recipe, iteration.steps, folder, seed=seed, title=title, validate=validation)
        return module


@dataclass
class MaskedPrediction:
    """HuBERT's objective as the trainer wants it."""

    module: HubertPretraining
    recipe: Recipe
    manifest: Manifest
    labels: Path
    steps: int
    seed: int

    def __post_init__(self) -> None:
        recipe, hop = self.recipe, self.recipe.config.downsample_rate
        self.crops = Crops(self.manifest, read_labels(self.labels, self.manifest, hop), hop)
        self.order = BatchOrder(
            self.manifest,
            hop,
            recipe.seconds_at_once,
            recipe.crop_seconds,
            self.seed,
            recipe.views,
        )
        self.flops = step_flops(self.module.model, int(recipe.crop_seconds * SAMPLE_RATE))
        compile_blocks(self.module.model.encoder.blocks, recipe)

    def batches(self, first: int) -> Iterable[Batch]:
        """This process's micro-batches, from step `first` on."""
        count, workers = self.recipe.micro_batches, self.recipe.workers
        share = distributed.share(count)
        return loader(self.crops, self.order, first, self.steps, micro_batches=count, share=share, workers=workers)

    def prepare(self, batch: Batch, number: int) -> tuple[MaskedBatch, Tensor]:
        """The batch with its mask, which seed and number fix."""
        objective, frames = self.recipe.objective, self.module.model.frame_count(batch.lengths)
        mask = span_mask(
            frames.tolist(), objective.mask_prob, objective.mask_length, seed=self.seed * 1_000_003 + number
        )
        # A file that could not be read leaves a crop without its partner.
        masked = with_mask(batch, mask, frames, paired=self.recipe.views == 2 and batch.skipped == 0)
        return masked, torch.tensor(masked.counts, dtype=torch.float64)

    def loss(self, prepared: MaskedBatch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's part of the step's loss."""
        return self.module(prepared.to(self.module.mask_vector.device), Counts(*totals.tolist()))

    def work(self, prepared: MaskedBatch) -> tuple[float, float]:
        """Seconds of audio and the FLOPs of training on them."""
        lengths = prepared.lengths.tolist()
        return sum(lengths) / SAMPLE_RATE, self.flops(lengths)

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Losses, accuracies, and the perplexity of the codewords that are predicted of masked frames."""
        share = sums.pop("codewords", None)
        values = {name: float(total) for name, total in sums.items()}
        if share is not None:
            used = share[share > 0].double()
            values["codebook_perplexity"] = float(torch.exp(-(used * used.log()).sum()))
        return values


class Validation:
    """Masked prediction of other audio, the same crops and masks every time."""

    def __init__(self, task: MaskedPrediction, manifest: Manifest, labels: Path) -> None:
        recipe, hop = task.recipe, task.recipe.config.downsample_rate
        self.task = task
        self.crops = Crops(manifest, read_labels(labels, manifest, hop), hop)
        order = BatchOrder(manifest, hop, recipe.seconds_at_once, recipe.crop_seconds, seed=0)
        self.batches = list(enumerate(order.batches(0, order.batches_per_epoch)))[
            distributed.rank() :: distributed.world()
        ]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Loss and accuracy of the masked frames, their mean over the audio of all processes."""
        module, objective = self.task.module, self.task.recipe.objective
        device = module.mask_vector.device
        module.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for number, items in self.batches:
            batch = collate([self.crops[item] for item in items])
            frames = module.model.frame_count(batch.lengths)
            mask = span_mask(frames.tolist(), objective.mask_prob, objective.mask_length, seed=number)
            masked = with_mask(batch, mask, frames, paired=False)
            # Means over one item are sums.
            parts = module(masked.to(device), Counts(masked=1.0, unmasked=0.0, crops=0.0, frames=1.0))[1]
            sums += torch.tensor([float(parts["loss_masked"]), float(parts["accuracy_masked"]), masked.counts.masked])
        module.train()
        loss, correct, count = distributed.summed(sums).tolist()
        return {"loss": loss / max(1.0, count), "accuracy": correct / max(1.0, count)}


def is_finished(final: Path, about: dict[str, Any], keys: tuple[str, ...], settings: Any, key: str) -> bool:
    """Whether the checkpoint `final` exists with the same provenance under `keys` and `settings` under `key`."""
    if not final.is_file():
        return False
    _, _, provenance = checkpoint.read(final)
    same = json.loads(json.dumps(about))
    return all(provenance.get(k) == same[k] for k in keys) and same_settings(provenance.get(key), settings)


# What a recipe says that changes no weight.
WITHOUT_EFFECT = ("workers", "save_every", "keep", "max_skipped", "source", "expected")


def same_settings(saved: Any, settings: Any) -> bool:
    """Whether `saved`, the dictionary of an earlier run, means `settings`; keys it lacks had their defaults then."""
    try:
        before = from_dict(type(settings), saved, "saved settings")
    except UserError:
        return False
    same = {key: getattr(settings, key) for key in WITHOUT_EFFECT if hasattr(settings, key)}
    return dataclasses.replace(before, **same) == settings


def calibration_batches(manifest: Manifest, config: Training, hop: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """A few batches of (waveforms, lengths) for statistics that are fixed once: normalisation, quantizers' scales.

    The same in every process.
    """
    order = BatchOrder(manifest, hop, config.micro_batch_seconds or config.batch_seconds, config.crop_seconds, seed)
    crops = Crops(manifest, None, hop)
    batches = (collate([crops[item] for item in items]) for items in order.batches(0, CALIBRATION_BATCHES))
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
