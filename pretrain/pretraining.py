"""`superbit pretrain`: labels, iteration, labels, iteration ... as stages; a finished stage is skipped."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import HubertPretraining
from pretrain.objectives.masked_prediction import MaskedPrediction, Validation
from pretrain.objectives.teacher import learn_from_teacher
from pretrain.recipes import Iteration, Recipe
from pretrain.targets.alignment import first_mfcc_frame, label_set_name
from pretrain.targets.feature_memory import check_features
from pretrain.targets.labels import write_labels, write_valid_labels
from pretrain.training import distributed, memory
from pretrain.training.calibration import calibrate_on_longest, calibration_batches, measure
from pretrain.training.monitor import warn_of_smallest_scales
from pretrain.training.provenance import (
    RUN_CONFIG,
    Provenance,
    describe,
    note_on_processes,
    read_run_config,
    with_stored_micro_batches,
    write_run_config,
)
from upstreams.config import HOP
from upstreams.errors import UserError, nearest
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import inherit, quantize, summary

_log = logging.getLogger(__name__)


def pretrain(
    recipe: Recipe,
    *,
    manifest_path: Path,
    out: Path,
    labels: Path,
    seed: int,
    stage: str | None = None,
    valid_path: Path | None = None,
) -> Path:
    """Pre-train `recipe.model` on a manifest and return its checkpoint, OUT/checkpoints/<model>.safetensors.

    With `quantization` in the recipe the model is quantized from the first step and the checkpoint is <model>_<bits>.
    <model>_untrained.safetensors beside it is the float initialisation. OUT/pretrain holds the run; an interrupted run
    resumes. labels: folder of the MFCC label sets, which runs of one seed share. stage: the last of `stages` to run,
    whose output is returned. valid_path: a manifest whose loss is logged with every saved state; it does not change the
    training.
    Raises UserError on bad data, bad bits or overrides, too little memory, or if gradients are not finite.
    """
    if stage is not None and stage not in stages(recipe):
        raise UserError(f"the recipe has no stage {stage!r}: {nearest(stage, stages(recipe))}")
    device = distributed.initialize()
    manifest = Manifest.read(manifest_path)
    valid = Manifest.read(valid_path) if valid_path is not None else None
    provenance = Provenance("recipe", recipe, {"seed": seed, "manifest": describe(manifest)})
    final = out / "checkpoints" / f"{recipe.name}.safetensors"
    if distributed.agreed(provenance.is_of(final)):
        return final
    settings = with_stored_micro_batches(recipe, out / "pretrain" / recipe.name)
    memory.check(recipe.config, settings, device, recipe.views if recipe.iterations else 1)
    if any(iteration.layer for iteration in recipe.iterations):
        for audio in (manifest, valid) if valid is not None else (manifest,):
            check_features(recipe.config, audio, settings.seconds_per_micro_batch, device)
    distributed.micro_batches_of_rank(settings.micro_batches)  # fails early if there are too few
    if not recipe.micro_batch_seconds and recipe.iterations:
        settings.check_crops(recipe.views, f"recipe {recipe.name} with {settings.micro_batches} micro-batches")
    note_on_processes(
        recipe, recipe.config, utterance_loss=bool(recipe.iterations and recipe.objective.utterance_weight)
    )
    run = _Run(
        settings,
        provenance,
        manifest=manifest,
        valid=valid,
        out=out,
        labels=labels,
        seed=seed,
        device=device,
    )
    path = final
    for name, run_stage in stages(recipe).items():
        with memory.explained(device, lambda name=name: f"stage {name} of {run.folder}"):  # type: ignore[misc]
            path = run_stage(run)
        if name == stage:
            break
    return path


def stages(recipe: Recipe) -> dict[str, Callable[[_Run], Path]]:
    """Return a recipe's stages by name, in order: labels1, iteration1, labels2, iteration2 ... teacher, export."""
    found: dict[str, Callable[[_Run], Path]] = {}
    for number, iteration in enumerate(recipe.iterations, start=1):
        found[f"labels{number}"] = functools.partial(_Run.write_labels, number=number, iteration=iteration)
        found[f"iteration{number}"] = functools.partial(_Run.iterate, number=number, iteration=iteration)
    if recipe.teacher.name:
        found["teacher"] = _Run.learn_from_teacher
    found["export"] = _Run.export
    return found


class _Run:
    """The model and the data of one run, and its stages. recipe: with a fixed number of micro-batches."""

    def __init__(
        self,
        recipe: Recipe,
        provenance: Provenance,
        *,
        manifest: Manifest,
        valid: Manifest | None,
        out: Path,
        labels: Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.manifest, self.valid = recipe, manifest, valid
        self.out, self.labels, self.seed, self.device = out, labels, seed, device
        self.folder = out / "pretrain" / recipe.name
        self.provenance = {**provenance.to_dict(), "micro_batches": recipe.micro_batches}
        hop = recipe.config.downsample_rate
        self.statistics = calibration_batches(manifest, recipe, hop, seed) if distributed.rank() == 0 else []
        self.model = self._initial_model(provenance).to(device)
        self.initial_weights = copy.deepcopy(self.model.state_dict())
        self.head: nn.Module | None = None  # the last iteration's

    def write_labels(self, number: int, iteration: Iteration) -> Path:
        """Write the targets of an iteration on rank 0; return the folder's train.km."""
        folder, layer = self._label_folder(number, iteration), iteration.layer
        if self.recipe.label_rate and not layer:
            return self._existing_labels(folder)
        front_end, model = self.recipe.config.front_end, self.model if layer else None
        subsampling, first = front_end.downsample_rate // HOP, first_mfcc_frame(front_end)
        if distributed.rank() == 0:
            self._tell_of_older_labels(folder, iteration)
            write_labels(
                self.manifest,
                folder,
                clusters=iteration.clusters,
                seed=self.seed,
                fraction=self.recipe.cluster_fraction,
                subsampling=subsampling,
                first=first,
                window=iteration.window,
                model=model,
                layer=layer,
                n_init=self.recipe.cluster_starts,
                workers=self.recipe.workers,
                batch_seconds=self.recipe.seconds_per_micro_batch,
            )
            if self.valid is not None:
                write_valid_labels(
                    self.valid,
                    folder,
                    subsampling,
                    first=first,
                    window=iteration.window,
                    model=model,
                    layer=layer,
                    workers=self.recipe.workers,
                    batch_seconds=self.recipe.seconds_per_micro_batch,
                )
        distributed.barrier()
        return folder / "train.km"

    def _existing_labels(self, folder: Path) -> Path:
        """Return the label file of a recipe with a label rate. Raises UserError if there is none."""
        path, rate = folder / "train.km", self.recipe.label_rate
        if not path.is_file():
            raise UserError(
                f"{path} is missing: label_rate is {rate:g} in the recipe, so labels of {rate:g} Hz belong there"
            )
        if self.valid is not None and not (folder / "valid.km").is_file():
            raise UserError(
                f"{folder / 'valid.km'} is missing: add the labels of --valid at {rate:g} Hz, or omit --valid"
            )
        return path

    def iterate(self, number: int, iteration: Iteration) -> Path:
        """Train the model by masked prediction of the iteration's labels; return the folder of its states."""
        if iteration.from_scratch:
            self.model.load_state_dict(self.initial_weights)
        recipe, seed, labels = self.recipe, self.seed + number - 1, self._label_folder(number, iteration)
        torch.manual_seed(seed)
        module = HubertPretraining(self.model, iteration.clusters, recipe.objective).to(self.device).train()
        task = MaskedPrediction(
            module,
            recipe,
            self.manifest,
            labels / "train.km",
            views=recipe.views,
            steps=iteration.steps,
            seed=seed,
            label_rate=0.0 if iteration.layer else recipe.label_rate,
        )
        validate = Validation(task, self.valid, labels / "valid.km") if self.valid is not None else None
        folder = self.folder / f"iteration{number}"
        task.train(folder, title=f"{recipe.name} {folder.name}", validate=validate)
        self.head = module.head
        return folder

    def learn_from_teacher(self) -> Path:
        """Train the model to predict the recipe's teacher; return the folder of its states."""
        folder = self.folder / "teacher"
        learn_from_teacher(
            self.model,
            self.recipe.teacher,
            self.recipe,
            self.manifest,
            folder=folder,
            seed=self.seed,
            device=self.device,
            title=f"{self.recipe.name} teacher",
        )
        self.head = None  # it belongs to the weights before this stage
        return folder

    def export(self) -> Path:
        """Fit the map of the exported hidden states and write the checkpoint, on rank 0."""
        path = self.out / "checkpoints" / f"{self.recipe.name}.safetensors"
        if distributed.rank() == 0:
            self.model.eval()
            self.model.fit_output([(w.to(self.device), n.to(self.device)) for w, n in self.statistics])
            warn_of_smallest_scales(self.model, self.recipe.name)
            checkpoint.save(path, self.model, self.head, {**self.provenance, "stage": "pretrained"})
        distributed.barrier()
        return path

    def _initial_model(self, provenance: Provenance) -> AudioEncoder:
        """Return the model that training starts from; write its float weights as <model>_untrained.safetensors.

        Rank 0 measures the statistics; the other ranks get them from it.
        """
        recipe = self.recipe
        torch.manual_seed(self.seed)
        model = AudioEncoder(recipe.config)
        quantized = copy.deepcopy(model)
        sites = quantize(quantized, recipe.quantization.bits, recipe.quantization.config)
        start = quantized if sites else model
        if distributed.rank() == 0:
            self._claim_folder(provenance)
            measure(model, self.statistics)
            path = self.out / "checkpoints" / f"{recipe.model}_untrained.safetensors"
            if not provenance.is_of(path):  # results of the file hold its digest, and a run may resume elsewhere
                checkpoint.save(path, model, None, {**self.provenance, "stage": "untrained"})
            if sites:
                inherit(quantized, model)
                calibrate_on_longest(quantized, self.statistics)
            for line in summary(sites):
                _log.info("%s: %s", recipe.name, line)
        distributed.broadcast_module(start)
        return start

    def _claim_folder(self, provenance: Provenance) -> None:
        """Write the run's config.json. Raises UserError if the folder holds a run of another provenance."""
        saved = read_run_config(self.folder)
        if saved and not provenance.matches(saved):
            raise UserError(
                f"{self.folder} holds a run of another recipe, seed or manifest ({RUN_CONFIG}): "
                "give another --out, or remove the folder to start from step 0"
            )
        write_run_config(self.folder, self.provenance)

    def _label_folder(self, number: int, iteration: Iteration) -> Path:
        if iteration.layer:
            return self.folder / f"labels{number}_layer{iteration.layer}_{iteration.clusters}"
        front_end, rate = self.recipe.config.front_end, self.recipe.label_rate
        return self.labels / label_set_name(iteration.clusters, front_end, rate, iteration.window)

    def _tell_of_older_labels(self, folder: Path, iteration: Iteration) -> None:
        """Log that a label set whose name has no frame rate, as earlier versions wrote, is not used."""
        older = self.labels / f"mfcc{iteration.clusters}"
        if iteration.layer or (folder / "train.km").is_file() or not (older / "train.km").is_file():
            return
        existing = label_set_name(iteration.clusters, self.recipe.config.front_end, 50.0)
        _log.warning(
            "%s is not used, as its name has no frame rate: the labels are made again in %s; to train on existing "
            "labels, set label_rate to their rate in Hz and name their folder after it, for example %s",
            older,
            folder,
            existing,
        )
