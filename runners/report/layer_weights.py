"""Layer weights: how much each hidden state contributes to a task's weighted sum, as the tested head learnt it."""

from __future__ import annotations

import argparse

import torch

from runners.report.results import expdir, tested_parts
from runners.report.table import Table


def layer_weights(table: Table, upstream: str) -> dict[str, list[float]]:
    """Return for each task the softmax weights of the hidden states, as the mean over seeds and folds.

    Tasks whose checkpoints were deleted, or whose heads have no weighted sum, are left out.
    """
    # s3prl stores its command-line arguments in the checkpoint. The permission must last, not end with a `with` block:
    # upstreams.s3prl.compat gives the same one, and the end of the block would take it away.
    torch.serialization.add_safe_globals([argparse.Namespace])
    found: dict[str, list[torch.Tensor]] = {}
    for result in table.of_upstream(upstream):
        for part in tested_parts(result).values():
            path = expdir(result, part) / part["tested"]
            if not path.is_file():
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            weights = state.get("Featurizer", {}).get("weights")
            if weights is not None and len(weights) > 1:
                found.setdefault(result["task"], []).append(weights.softmax(0))
    return {task: torch.stack(found[task]).mean(0).tolist() for task in table.tasks if task in found}
