"""Batches of audio crops and their labels. Their order is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError


@dataclass(frozen=True)
class Batch:
    """waveforms: (batch, samples). lengths: (batch,) in samples. labels: (batch, frames), -1 where there is none.

    missing: positions, among the crops that the batch should have, of those whose files could not be read.
    """

    waveforms: Tensor
    lengths: Tensor
    labels: Tensor
    missing: tuple[int, ...] = ()

    @property
    def skipped(self) -> int:
        """Number of crops of this batch whose files could not be read."""
        return len(self.missing)

    def pairs(self) -> Tensor:
        """Return the rows of crops 2 i and 2 i + 1 for each i of which both were read, (rows,)."""
        read = sorted({*range(len(self.lengths) + self.skipped)} - {*self.missing})
        return torch.tensor([row for row, place in enumerate(read) if place ^ 1 in read], dtype=torch.long)

    def to(self, device: torch.device) -> Batch:
        """Return this batch on another device, where it may still be on its way."""
        waveforms, lengths, labels = (sent(tensor, device) for tensor in (self.waveforms, self.lengths, self.labels))
        return Batch(waveforms, lengths, labels, self.missing)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`. To another device than the CPU it is copied while the CPU continues."""
    if device == tensor.device:
        return tensor
    # Only a copy from memory that cannot be paged out runs beside the CPU.
    return tensor.pin_memory().to(device, non_blocking=True)


class Crops(Dataset[tuple[np.ndarray, np.ndarray] | None]):
    """Crops of a manifest's utterances. The index of a crop is (utterance, first frame, number of samples).

    An item is (audio, labels from the first frame on), or None if the file cannot be read. hop: samples of a frame.
    """

    def __init__(self, manifest: Manifest, labels: Sequence[np.ndarray] | None, hop: int) -> None:
        if labels is not None and len(labels) != len(manifest):
            raise UserError(f"there are labels for {len(labels)} utterances, but the manifest has {len(manifest)}")
        self.manifest = manifest
        self.labels = labels
        self.hop = hop

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray] | None:
        index, frame, samples = item
        path = self.manifest.root / self.manifest.paths[index]
        try:
            audio = load_audio(path, frame * self.hop, samples)
        except UserError as error:
            tqdm.write(f"skipped: {error}")
            return None
        labels = self.labels[index][frame:] if self.labels is not None else np.zeros(0, dtype=np.int64)
        return audio, labels


class BatchOrder:
    """The batches of each epoch: crops of similar length together, at most `batch_seconds` of padded audio in each.

    The order is a function of the seed and the step, so that a resumed run continues with the very next batch.
    hop: samples of a frame; views: crops of each utterance in a batch, which share no sample. Utterances with fewer
    frames than views are left out. Raises UserError if no utterance is left.
    """

    def __init__(
        self,
        manifest: Manifest,
        hop: int,
        batch_seconds: float,
        crop_seconds: float,
        seed: int,
        views: int = 1,
    ) -> None:
        self.samples = np.array(manifest.samples)
        self.hop = hop
        self.budget = int(batch_seconds * SAMPLE_RATE)
        self.crop = int(crop_seconds * SAMPLE_RATE)
        self.seed = seed
        self.views = views
        # With several views, each is drawn from its own part of the utterance, of whole frames: the crops of an
        # utterance share no sample.
        self.part = self.samples if views == 1 else self.samples // (views * hop) * hop
        if not self.part.any():
            raise UserError(f"no utterance of the manifest has the {views * hop} samples that {views} crops need")
        self.batches_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[tuple[int, int, int]]]:
        random = np.random.default_rng([self.seed, epoch])
        size = np.minimum(self.part, self.crop)
        # Sorted by length plus noise, crops of similar length are together, but not always the same utterances.
        order = np.argsort(size + random.uniform(0, self.crop / 8, len(size)), kind="stable")
        order = order[self.part[order] > 0]
        batches: list[list[tuple[int, int, int]]] = []
        batch: list[tuple[int, int, int]] = []
        longest = 0
        for index in order:
            longest_with = max(longest, int(size[index]))
            if batch and longest_with * (len(batch) + self.views) > self.budget:
                batches.append(batch)
                batch, longest_with = [], int(size[index])
            for view in range(self.views):
                begin = view * int(self.part[index])
                # The last part ends where the utterance ends.
                end = int(self.samples[index]) if view == self.views - 1 else begin + int(self.part[index])
                room = (end - begin - int(size[index])) // self.hop
                frame = begin // self.hop + int(random.integers(room + 1))
                batch.append((int(index), frame, int(size[index])))
            longest = longest_with
        batches.append(batch)
        random.shuffle(batches)
        return batches

    def batches(self, first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield batches first ... last - 1, counted from the start of training; each is a list of indices of crops."""
        epoch = -1
        for number in range(first, last):
            if number // self.batches_per_epoch != epoch:
                epoch = number // self.batches_per_epoch
                batches = self._epoch(epoch)
            # An epoch may have one batch more or less than the first epoch.
            yield batches[min(number % self.batches_per_epoch, len(batches) - 1)]


def collate(items: list[tuple[np.ndarray, np.ndarray] | None]) -> Batch:
    """Return a batch, padded to its longest item. Files that could not be read (None) are left out.

    If none could be read, the batch has no utterance.
    """
    read = [item for item in items if item is not None]
    missing = tuple(place for place, item in enumerate(items) if item is None)
    lengths = torch.tensor([len(audio) for audio, _ in read], dtype=torch.long)
    waveforms = torch.zeros(len(read), max((len(audio) for audio, _ in read), default=0))
    labels = torch.full((len(read), max(1, *(len(ids) for _, ids in read), 1)), -1)
    for row, (audio, ids) in enumerate(read):
        waveforms[row, : len(audio)] = torch.from_numpy(audio)
        labels[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return Batch(waveforms, lengths, labels, missing)


class _MicroBatches(Sampler[list[tuple[int, int, int]]]):
    """The micro-batches of steps first ... last - 1 whose numbers within a step are in `share`."""

    def __init__(self, order: BatchOrder, first: int, last: int, per_step: int, share: Sequence[int]) -> None:
        self.order, self.per_step, self.share = order, per_step, share
        self.numbers = range(first * per_step, last * per_step)

    def __len__(self) -> int:
        return len(self.numbers) // self.per_step * len(self.share)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        batches = self.order.batches(self.numbers.start, self.numbers.stop)
        for number, batch in zip(self.numbers, batches, strict=True):
            if number % self.per_step in self.share:
                yield batch


def loader(
    crops: Crops,
    order: BatchOrder,
    first: int,
    last: int,
    *,
    micro_batches: int = 1,
    share: Sequence[int] | None = None,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Return an iterable over the micro-batches of steps first ... last - 1.

    micro_batches: number in each step, over all ranks. share: numbers within a step, from 0, of the micro-batches that
    this rank computes; None for all of them. A micro-batch is the same on whichever rank it is computed. workers:
    processes that read ahead.
    """
    ahead = {"prefetch_factor": 4} if workers else {}
    sampler = _MicroBatches(order, first, last, micro_batches, range(micro_batches) if share is None else share)
    return DataLoader(crops, batch_sampler=sampler, collate_fn=collate, num_workers=workers, **ahead)  # type: ignore[arg-type]
