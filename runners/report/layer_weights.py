"""How much each hidden state counts in each task's weighted sum, as the tested heads learnt it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.report.write import Table


def layer_weights(table: Table, upstream: str) -> dict[str, list[float]]:
    """Of each task whose cells' states are still there: the mean over seeds and folds of the softmax weights."""
    import argparse

    import torch

    from runners.report.submission import tested_state

    # As upstreams.s3prl.compat does; the context manager of the same purpose would take it away from that again.
    torch.serialization.add_safe_globals([argparse.Namespace])
    found: dict[str, list[torch.Tensor]] = {}
    for result in table.results:
        if result["upstream"] != upstream:
            continue
        for tested in result.get("folds", {"": result}).values():
            path = Path(tested_state(tested))
            if not path.is_file():
                continue
            state = torch.load(path, map_location="cpu", weights_only=True)
            weights = state.get("Featurizer", {}).get("weights")
            if weights is not None and len(weights) > 1:
                found.setdefault(result["task"], []).append(weights.softmax(0))
    return {task: torch.stack(found[task]).mean(0).tolist() for task in table.tasks if task in found}
