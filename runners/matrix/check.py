"""Checks of what a matrix is to run, before anything is moved or trained."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

from runners.corpora.check import check_config
from runners.matrix.cell import Cell
from runners.tasks import TASKS
from upstreams.errors import UserError


def checked(cells: Sequence[Cell], where: str = "", *, will_run: bool = True) -> list[Cell]:
    """Return the cells with their device, after a check of everything that they need.

    where: ends a message about a value of a configuration. will_run: False: the machine needs no GPU.

    Also imports what the trainings need, once, for the processes that are forked from this one. Raises UserError that
    names the key, the upstream or the missing file of the corpora, and what would be valid.
    """
    # Before anything computes: a pool of OpenMP threads in this process would block its forks.
    import torch

    torch.set_num_threads(1)
    from runners.downstream.values import check_values

    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = next(cell for cell in cells if cell.task == task)
        for config in of_task.configs:
            for rate in of_task.learning_rates or (None,):
                tried = {} if rate is None else {"optimizer": config["optimizer"] | {"lr": rate}}
                check_values(TASKS[task], config | tried, where)
            check_config(TASKS[task], config)
    _check_upstreams(cells)
    for module in ("runners.downstream.run", "runners.downstream.experiment"):
        importlib.import_module(module)
    for task in dict.fromkeys(cell.task for cell in cells):
        importlib.import_module(f"s3prl.downstream.{TASKS[task].downstream}.expert")
    return [replace(cell, device=_device(cell.device, will_run)) for cell in cells]


def _check_upstreams(cells: Sequence[Cell]) -> None:
    from upstreams import registry
    from upstreams.s3prl.names import check_upstream, import_modules

    for modules in dict.fromkeys(cell.upstream_modules for cell in cells):
        import_modules(modules)
    for name, file in dict.fromkeys((cell.upstream, cell.checkpoint) for cell in cells if not cell.is_open):
        check_upstream(name, file, None)
        if name in registry.names():
            registry.cost_model(registry.checkpoint_path(name, file))  # reads all of a file that may be damaged


def _device(name: str, will_run: bool) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and will_run and not torch.cuda.is_available():
        raise UserError("the matrix asks for device cuda, but torch sees no GPU; set device: cpu or auto")
    return name
