"""`superbit probe`: what a logistic regression reads from each layer of a checkpoint, on the tasks' dev sets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from runners.analysis.probe.features import POOLINGS, Source, features
from runners.analysis.probe.items import SPLITS, TITLES, Items, draw
from upstreams import registry
from upstreams.errors import UserError, nearest
from upstreams.model import AudioEncoder
from upstreams.packed import convert

C = 0.1  # inverse strength of the regularisation, of standardised features
ITERATIONS = 100
LOG_MEL = "log-mel"  # the baseline's row


@dataclass(frozen=True)
class Result:
    """Accuracy of one layer of one checkpoint on one task's dev set, between 0 and 1.

    constant: accuracy of the best constant answer, which is the share of the dev set's most frequent class.
    """

    checkpoint: str
    task: str
    layer: str
    pooling: str
    seed: int
    train_items: int
    dev_items: int
    constant: float
    accuracy: float


def probe(
    targets: Sequence[str], root: Path, tasks: Sequence[str], *, count: int, seed: int, pooling: str
) -> list[Result]:
    """Probe every layer of all targets and the mean of their layers, and log-mel as a baseline, on the same items.

    targets: checkpoint files, packed or not, or upstream names; root: the corpora root; tasks: of ks, sid, ic, pr;
    count: items of the training set and of the dev set (`items.draw`). The same arguments give the same numbers on one
    machine. Raises UserError for an unknown name, task or pooling, and for a corpus that is missing.
    """
    if pooling not in POOLINGS:
        raise UserError(f"there is no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
    for task in tasks:
        if task not in TITLES:
            raise UserError(f"there is no probe for {task!r}: {nearest(task, TITLES)}")
    sources = [Source(LOG_MEL, None), *(Source(name, _load(target)) for target, name in _names(targets))]
    items = {task: draw(task, root, count, seed) for task in TITLES if task in tasks}
    return [result for task in items for result in _probe_task(sources, items[task], seed, pooling)]


def _names(targets: Sequence[str]) -> list[tuple[str, str]]:
    """Return (target, name of its row): a file's name without suffix, or its path if two names are equal."""
    targets = list(dict.fromkeys(targets))
    stems = [Path(target).stem if registry.is_file(target) else target for target in targets]
    return [(t, s if stems.count(s) == 1 else t) for t, s in zip(targets, stems, strict=True)]


def _load(target: str) -> AudioEncoder:
    model = convert.load(Path(target) if registry.is_file(target) else registry.checkpoint_path(target))
    return model.to("cuda") if torch.cuda.is_available() else model


def _probe_task(sources: Sequence[Source], items: dict[str, Items], seed: int, pooling: str) -> list[Result]:
    train, dev = (items[split].labels for split in SPLITS)
    found: dict[str, dict[str, list[NDArray]]] = {source.name: {} for source in sources}
    for split, part in items.items():
        audio = tqdm(range(len(part.files)), desc=f"{part.task} {split} audio", unit="utt", leave=False)
        waveforms = [part.read(index) for index in audio]  # read once for all checkpoints
        for source in sources:
            found[source.name][split] = [x.numpy() for x in features(source, part, waveforms, pooling)]
    constant = float(np.unique(dev, axis=0, return_counts=True)[1].max() / len(dev))
    results = []
    task = items["dev"].task
    for source in sources:
        layers = zip(source.layers, *(found[source.name][split] for split in SPLITS), strict=True)
        for layer, x, x_dev in tqdm(layers, total=len(source.layers), desc=f"{task} {source.name}", leave=False):
            if not (np.isfinite(x).all() and np.isfinite(x_dev).all()):
                raise UserError(f"{source.name}: the features of layer {layer} are not finite; the training diverged")
            score = accuracy(x, train, x_dev, dev)
            kind = "frame" if items["dev"].moments is not None else pooling
            results.append(Result(source.name, task, layer, kind, seed, len(train), len(dev), constant, score))
    return results


def accuracy(x: NDArray, y: NDArray, x_dev: NDArray, y_dev: NDArray) -> float:
    """Return the share of dev items of which a logistic regression finds all slots.

    x, x_dev: (items, dim), standardised here by the training items; y, y_dev: labels (items, slots). Each slot has its
    own regression. Deterministic.
    """
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    x, x_dev = ((part - mean) / std for part in (x, x_dev))
    right = np.ones(len(y_dev), bool)
    for slot in range(y.shape[1]):
        if len(np.unique(y[:, slot])) == 1:
            right &= y_dev[:, slot] == y[0, slot]
            continue
        model = LogisticRegression(C=C, max_iter=ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the probe
            model.fit(x, y[:, slot])
        right &= model.predict(x_dev) == y_dev[:, slot]
    return float(right.mean())
