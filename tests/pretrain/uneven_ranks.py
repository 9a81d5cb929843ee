"""Run by two processes: ranks whose files, weights and logged keys differ. Argument: a folder for the run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pretrain.audio import data
from pretrain.pretraining import pretrain
from pretrain.recipes import read_recipe
from pretrain.training import calibration, distributed
from tests.pretrain.toy import SETTINGS, Toy


def main(folder: Path) -> None:
    """Raise AssertionError if a promise does not hold."""
    distributed.initialize()
    rank = distributed.rank()
    # NCCL's limit is 30 minutes; the long wait has a group of its own.
    assert distributed.COLLECTIVE_TIMEOUT.total_seconds() == 1800
    waiting = distributed._waiting[0]
    assert dist.get_backend(waiting) == "gloo" and waiting is not dist.group.WORLD

    # Keys that only one rank has, and none at all.
    sums = {"a": torch.tensor(1.0 + rank)} | ({"b": torch.ones(3)} if rank else {})
    totals = distributed.all_reduce_named(sums)
    assert totals["a"] == 3 and totals["b"].tolist() == [1, 1, 1]
    assert distributed.all_reduce_named(sums if rank else {})["a"] == 2
    assert distributed.agreed(rank == 0) and not distributed.agreed(rank == 1)

    # All ranks start from rank 0's weights and buffers, booleans too.
    toy = Toy(SETTINGS, steps=3)
    toy.module.register_buffer("flag", torch.tensor(rank == 0))
    torch.manual_seed(rank)
    nn.init.normal_(toy.module["head"].weight)  # type: ignore[index, arg-type]
    for tensor in toy.run(folder / "toy").values():
        same = tensor.double().flatten()[:50].clone()
        dist.broadcast(same, 0)
        assert torch.equal(same, tensor.double().flatten()[:50])
    assert bool(toy.module.flag)

    # Only rank 0 reads audio for statistics. Rank 1's micro-batches cannot be read in the first step, and one file of
    # them in the second; the run continues.
    if rank == 1:
        calibration.Crops = None  # type: ignore[misc, assignment]
        collate, calls = data.collate, [0]

        def fails_at_first(items: list[tuple[np.ndarray, np.ndarray] | None]) -> data.Batch:
            calls[0] += 1
            unread = len(items) if calls[0] == 1 else 1 if calls[0] == 2 else 0
            return collate([None] * unread + items[unread:])

        data.collate = fails_at_first
    logging.basicConfig(level=logging.INFO)
    recipe = read_recipe(str(folder / "recipe.yaml"))
    options = {"manifest_path": folder / "audio/train.tsv", "out": folder / "run", "labels": folder / "labels"}
    pretrain(recipe, seed=0, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
