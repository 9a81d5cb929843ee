"""Batches of cropped audio and its labels, by seconds of audio, in an order that seed and step alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretrain import distributed
from pretrain.manifest import Manifest, load_audio
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError


@dataclass(frozen=True)
class Batch:
    """waveforms (batch, samples), lengths (batch,) in samples, labels (batch, frames), -1 where there is none."""

    waveforms: Tensor
    lengths: Tensor
    labels: Tensor
    skipped: int  # files of this batch that could not be read

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.waveforms.to(device), self.lengths.to(device), self.labels.to(device), self.skipped)


class Crops(Dataset[tuple[np.ndarray, np.ndarray] | None]):
    """Crops of a manifest's utterances; an item is asked for as (utterance, first frame, samples)."""

    def __init__(self, manifest: Manifest, labels: Sequence[np.ndarray] | None, hop: int) -> None:
        if labels is not None and len(labels) != len(manifest):
            raise UserError(f"there are labels for {len(labels)} utterances, but {len(manifest)} in the manifest")
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
    """The batches of each epoch: crops of like length together, at most `batch_seconds` of padded audio each.

    The order is a function of seed and step alone, so that a run goes on with the very next batch after a restart.
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
        self.batches_an_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[tuple[int, int, int]]]:
        random = np.random.default_rng([self.seed, epoch])
        # `views` crops of an utterance do not overlap: each is drawn from its own part of it.
        part = self.samples // self.views
        size = np.minimum(part, self.crop)
        # Sorting by length plus noise buckets like lengths without always batching the same utterances.
        order = np.argsort(size + random.uniform(0, self.crop / 8, len(size)), kind="stable")
        batches: list[list[tuple[int, int, int]]] = []
        batch: list[tuple[int, int, int]] = []
        longest = 0
        for index in order:
            longest_with = max(longest, int(size[index]))
            if batch and longest_with * (len(batch) + self.views) > self.budget:
                batches.append(batch)
                batch, longest_with = [], int(size[index])
            for view in range(self.views):
                room = int(part[index] - size[index]) // self.hop
                frame = int(view * part[index]) // self.hop + int(random.integers(room + 1))
                batch.append((int(index), frame, int(size[index])))
            longest = longest_with
        batches.append(batch)
        random.shuffle(batches)
        return batches

    def steps(self, first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
        """The batches of steps first ... last - 1."""
        epoch = -1
        for step in range(first, last):
            if step // self.batches_an_epoch != epoch:
                epoch = step // self.batches_an_epoch
                batches = self._epoch(epoch)
            # An epoch's crops may pack into one batch more or less than the first epoch's.
            yield batches[min(step % self.batches_an_epoch, len(batches) - 1)]


def collate(items: list[tuple[np.ndarray, np.ndarray] | None]) -> Batch:
    """Pad to the longest; unreadable files (None) are left out and counted."""
    read = [item for item in items if item is not None]
    if not read:
        raise UserError("none of a batch's audio files could be read")
    lengths = torch.tensor([len(audio) for audio, _ in read])
    waveforms = torch.zeros(len(read), int(lengths.max()))
    labels = torch.full((len(read), max(1, *(len(ids) for _, ids in read), 1)), -1)
    for row, (audio, ids) in enumerate(read):
        waveforms[row, : len(audio)] = torch.from_numpy(audio)
        labels[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    return Batch(waveforms, lengths, labels, len(items) - len(read))


def loader(crops: Crops, order: BatchOrder, first: int, last: int) -> DataLoader[Batch]:
    """Batches of steps first ... last - 1; of several processes, each gets its own ones of the same order."""
    world = distributed.world()
    batches = list(order.steps(first * world, last * world))[distributed.rank() :: world]
    return DataLoader(crops, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]


def read_labels(path: Path) -> list[np.ndarray]:
    """A .km file: one line an utterance, space-separated cluster ids at the encoder's frame rate."""
    if not path.is_file():
        raise UserError(f"no labels at {path}: one line an utterance of space-separated cluster ids is expected")
    with path.open(encoding="utf-8") as file:
        return [np.array(line.split(), dtype=np.int16) for line in file]
