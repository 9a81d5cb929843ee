"""HuBERT's masked prediction as a task of the training loop, and its validation on other audio."""

from __future__ import annotations

from math import nan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch, BatchOrder, Crops, collate
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import Counts, HubertPretraining, MaskedBatch, with_mask
from pretrain.objectives.masking import span_mask
from pretrain.objectives.task import AudioTask
from pretrain.targets.label_files import read_labels
from pretrain.training import distributed
from pretrain.training.settings import TrainingSettings
from upstreams.model import in_eval_mode


class MaskedPrediction(AudioTask[MaskedBatch]):
    """Prediction of the labels in a .km file. views: 2 if the crops of an utterance are paired.

    label_rate: Hz of the labels, 0 if it is the model's.
    """

    module: HubertPretraining

    def __init__(
        self,
        module: HubertPretraining,
        settings: TrainingSettings,
        manifest: Manifest,
        labels: Path,
        *,
        views: int,
        steps: int,
        seed: int,
        label_rate: float = 0.0,
    ) -> None:
        self.module, self.views, self.label_rate = module, views, label_rate
        ids = self.read_labels(labels, manifest)
        super().__init__(module, module.model, settings, manifest, steps=steps, seed=seed, labels=ids, views=views)

    def read_labels(self, path: Path, manifest: Manifest) -> list[np.ndarray]:
        """Return the labels of the manifest's utterances at the model's frames; see `label_files.read_labels`."""
        front_end, clusters = self.module.model.config.front_end, self.module.head.codeword_count
        return read_labels(path, manifest, front_end, label_rate=self.label_rate, clusters=clusters)

    def prepare(self, batch: Batch, number: int) -> tuple[MaskedBatch, Tensor]:
        """Add the mask, which the seed and `number` determine."""
        masked = masked_batch(self.module, batch, seed=self.seed * 1_000_003 + number, paired=self.views == 2)
        return masked, torch.tensor(masked.counts, dtype=torch.float64)

    def loss(self, prepared: MaskedBatch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the step's loss."""
        return self.module(prepared, Counts(*totals.tolist()), detailed=self.logged)

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return losses, accuracies, and the perplexity of the codewords predicted for masked frames."""
        share = sums.pop("codewords", None)
        values = super().summary(sums)
        if share is not None:
            used = share[share > 0].double()
            values["codebook_perplexity"] = float(torch.exp(-(used * used.log()).sum()))
        return values


class Validation:
    """Loss and accuracy of masked prediction on other audio, with the same crops and masks at every call."""

    def __init__(self, task: MaskedPrediction, manifest: Manifest, labels: Path) -> None:
        settings, hop = task.settings, task.hop
        self.task = task
        self.crops = Crops(manifest, task.read_labels(labels, manifest), hop)
        order = BatchOrder(manifest, hop, settings.seconds_per_micro_batch, settings.crop_seconds, seed=0)
        batches = enumerate(order.batches(0, order.batches_per_epoch))
        self.batches = list(batches)[distributed.rank() :: distributed.world_size()]

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> dict[str, float]:
        """Return the mean loss and accuracy of the masked frames, over the audio of all ranks; NaN without audio."""
        assert isinstance(module, HubertPretraining)
        sums = torch.zeros(3, dtype=torch.float64)
        with in_eval_mode(module):
            for number, items in self.batches:
                batch = collate([self.crops[item] for item in items])
                if not len(batch.lengths):
                    continue
                masked = masked_batch(module, batch, seed=number, paired=False)
                # Means over one item are sums.
                one = Counts(masked=1.0, unmasked=0.0, crops=0.0, frames=1.0)
                parts = module(masked.to(self.task.device), one)[1]
                values = [float(parts["loss_masked"]), float(parts["accuracy_masked"]), masked.counts.masked]
                sums += torch.tensor(values, dtype=torch.float64)
        loss, correct, count = distributed.all_reduce(sums).tolist()
        return {"loss": loss / count, "accuracy": correct / count} if count else {"loss": nan, "accuracy": nan}


def masked_batch(module: HubertPretraining, batch: Batch, *, seed: int, paired: bool) -> MaskedBatch:
    """Return the batch with spans masked as the module's objective says, drawn with `seed`."""
    objective, frames = module.objective, module.model.frame_count(batch.lengths)
    mask = span_mask(frames.tolist(), objective.mask_prob, objective.mask_length, seed=seed)
    return with_mask(batch, mask, frames, paired)
