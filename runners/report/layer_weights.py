"""Layer weights: how much each hidden state contributes to a task's weighted sum, as the tested head learnt it."""

from __future__ import annotations

import logging

import torch

from runners.downstream.states import read_state
from runners.report.results import expdir, tested_parts
from runners.report.table import Table
from upstreams.errors import UserError

_log = logging.getLogger(__name__)


def layer_weights(table: Table, upstream: str) -> dict[str, list[float]]:
    """Return for each task the softmax weights of the hidden states, as the mean over seeds and folds.

    Tasks whose checkpoints were deleted or are damaged, or whose heads have no weighted sum, are left out.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for result in table.of_upstream(upstream):
        for part in tested_parts(result).values():
            path = expdir(result, part) / part["tested"]
            if not path.is_file():
                continue
            try:
                state = read_state(path)
            except UserError as error:
                _log.warning("%s; the layer weights of %s leave it out", error, upstream)
                continue
            weights = state.get("Featurizer", {}).get("weights")
            if weights is not None and len(weights) > 1:
                found.setdefault(result["task"], []).append(weights.softmax(0))
    return {task: torch.stack(found[task]).mean(0).tolist() for task in table.tasks if task in found}
