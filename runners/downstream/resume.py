"""Loads saved states into an optimizer or a scheduler whose settings may have changed since then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@contextmanager
def keep_settings(model: Any) -> Iterator[None]:
    """Inside the block a state is loaded into `model`; its settings, such as learning rates, stay what they are.

    torch saves the settings with the state, so a learning rate that was changed for the rest of a training (-o) would
    be in the saved configuration, and the optimizer would use the old one.
    """
    if isinstance(model, Optimizer):
        settings = [{key: value for key, value in group.items() if key != "params"} for group in model.param_groups]
        yield
        for group, kept in zip(model.param_groups, settings, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(kept, params=parameters)
    elif isinstance(model, LambdaLR):
        rates = list(model.base_lrs)
        yield
        model.base_lrs = rates
        for group, rate, factor in zip(model.optimizer.param_groups, rates, model.lr_lambdas, strict=True):
            group["lr"] = rate * factor(model.last_epoch)
    else:
        yield
