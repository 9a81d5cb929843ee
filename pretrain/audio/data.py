"""Batches of cropped audio and its labels, by seconds of audio, in an order that seed and step alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from pretrain.training import distributed
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError

MOST_LABELS = 2**15  # that fit into the 16 bits in which labels are kept


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


class _Share(Sampler[list[tuple[int, int, int]]]):
    """This process's share of the micro-batches of steps first ... last - 1: the same ones, whoever computes them."""

    def __init__(self, order: BatchOrder, first: int, last: int, micro_batches: int) -> None:
        self.order, self.micro_batches = order, micro_batches
        self.numbers = range(first * micro_batches, last * micro_batches)
        self.share = distributed.share(micro_batches)

    def __len__(self) -> int:
        return len(self.numbers) // self.micro_batches * len(self.share)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        steps = self.order.steps(self.numbers.start, self.numbers.stop)
        for number, batch in zip(self.numbers, steps, strict=True):
            if number % self.micro_batches in self.share:
                yield batch


def loader(
    crops: Crops, order: BatchOrder, first: int, last: int, micro_batches: int = 1, workers: int = 0
) -> DataLoader[Batch]:
    """Batches of steps first ... last - 1, `micro_batches` a step, the same ones whatever the number of processes.

    workers: processes that read ahead. Of several processes that train, each gets its share of every step.
    """
    ahead = {"prefetch_factor": 4} if workers else {}
    share = _Share(order, first, last, micro_batches)
    return DataLoader(crops, batch_sampler=share, collate_fn=collate, num_workers=workers, **ahead)  # type: ignore[arg-type]


def read_labels(path: Path, manifest: Manifest, hop: int, label_rate: float | None = None) -> list[np.ndarray]:
    """A .km file (one line an utterance, space-separated cluster ids) as one array of ids an utterance.

    Labels of another rate than the encoder's, `label_rate` Hz, are read as fairseq does: a frame takes the label that
    begins with it or before. An empty line is an utterance without labels. Raises UserError, with the first offending
    line, when the lines are not as many as the manifest's utterances, when a line is of another length than its audio
    by more than 0.1 s (fairseq's tolerance), and on ids that are no numbers or are not in dict.km.txt beside the file.
    """
    if not path.is_file():
        raise UserError(f"no labels at {path}: one line an utterance of space-separated cluster ids is expected")
    dictionary = path.with_name("dict.km.txt")
    known = len(dictionary.read_text(encoding="utf-8").splitlines()) if dictionary.is_file() else MOST_LABELS
    frame_rate = SAMPLE_RATE / hop
    ratio = (label_rate or frame_rate) / frame_rate
    labels: list[np.ndarray] = []
    number = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if number > len(manifest):
                continue
            where, samples = f"line {number} of {path}", manifest.samples[number - 1]
            try:
                ids = np.array(line.split(), dtype=np.int64)
            except ValueError:
                raise UserError(f"{where} must hold cluster ids, whole numbers, not {line.strip()[:40]!r}") from None
            if len(ids) and not 0 <= ids.min() <= ids.max() < known:
                wrong = next(int(k) for k in ids if not 0 <= k < known)
                raise UserError(f"{where} has the label {wrong}, but {dictionary.name} knows 0 to {known - 1}")
            seconds, audio = len(ids) / (frame_rate * ratio), samples / SAMPLE_RATE
            if len(ids) and abs(seconds - audio) > max(0.1, 2 / frame_rate):
                raise UserError(
                    f"{where} has {len(ids)} labels, {seconds:.2f} s at {frame_rate * ratio:g} Hz, but the audio "
                    f"{manifest.paths[number - 1]} has {samples} samples, {audio:.2f} s"
                )
            if ratio != 1:
                at = np.floor(np.arange(-(-samples // hop)) * ratio).astype(np.int64)
                ids = ids[at[at < len(ids)]]
            labels.append(ids.astype(np.int16))
    if number != len(manifest):
        raise UserError(f"{path} has {number} lines, but the manifest has {len(manifest)} utterances")
    return labels
