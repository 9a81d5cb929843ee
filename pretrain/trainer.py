"""The training loop that pre-training and distillation share: resumable to the bit, logged, interrupted safely."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretrain import distributed
from pretrain.muon import Muon
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.quantization.quantizers import Quantizer

Losses = tuple[Tensor, dict[str, Tensor]]


def optimizers(
    module: nn.Module,
    lr: float,
    matrix_lr: float,
    weight_decay: float,
    matrix_parent: nn.Module,
    scale_lr: float = 1e-4,
) -> list[torch.optim.Optimizer]:
    """Muon on the weight matrices inside `matrix_parent`, AdamW on everything else that is trained.

    `matrix_lr` is in units of AdamW's update size. Vectors, scales, embeddings and heads are left to AdamW, as Muon's
    author advises; BiT trains quantizers' scales and shifts at a rate of their own, `scale_lr`, without decay.
    """
    scales = {id(p): p for m in module.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    matrices = {id(p): p for p in matrix_parent.parameters() if p.ndim == 2 and p.requires_grad and min(p.shape) > 1}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in matrices | scales]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay}]
    if scales:
        groups.append({"params": list(scales.values()), "lr": scale_lr, "weight_decay": 0.0})
    return [
        Muon(matrices.values(), lr=matrix_lr, weight_decay=weight_decay),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6),
    ]


def warm_up_decay(step: int, steps: int, warm_up: float) -> float:
    """Factor of the learning rate: linear warm-up over the fraction `warm_up`, then linear decay to 0."""
    rising = max(1, int(steps * warm_up))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))


def fit(
    module: nn.Module,
    groups: list[torch.optim.Optimizer],
    batches: Callable[[int], Iterable[Any]],
    losses: Callable[[Any, int], Losses],
    steps: int,
    folder: Path,
    *,
    warm_up: float = 0.1,
    clip: float = 1.0,
    save_every: int = 100,
    title: str = "",
) -> None:
    """Train `module` for `steps` steps, from where `folder` says an earlier run stopped.

    batches(first) iterates the batches from step `first` on; losses(batch, step) -> (loss, scalars to log). What is
    random in a step is drawn after `torch.manual_seed` with the step, so that a resumed run equals one never stopped.
    Under torchrun gradients are averaged over the processes, of which the first one logs and saves.
    Raises UserError when the loss stops being finite; on Ctrl-C or SIGTERM saves its state and re-raises.
    """
    state_file = folder / "state.pt"
    first = _load(state_file, module, groups)
    if first >= steps:
        return
    base = [[g["lr"] for g in o.param_groups] for o in groups] if first == 0 else _base_rates(state_file)
    trained = [p for p in module.parameters() if p.requires_grad]
    stop = _StopSignal()
    device = trained[0].device
    main = distributed.rank() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop)
        writer = stack.enter_context(SummaryWriter(str(folder), purge_step=first)) if main else None
        bar = tqdm(
            batches(first), total=steps, initial=first, desc=title, unit="step", mininterval=2.0, disable=not main
        )
        for step, batch in enumerate(bar, start=first):
            torch.manual_seed(step)
            factor = warm_up_decay(step, steps, warm_up)
            for optimizer, rates in zip(groups, base, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            loss, scalars = losses(batch, step)
            if not torch.isfinite(loss):
                raise UserError(f"the loss became {float(loss)} at step {step} of {folder}: lower the learning rate")
            loss.backward()
            distributed.average_gradients(trained)
            norm = nn.utils.clip_grad_norm_(trained, clip)
            for optimizer in groups:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if writer is not None and (step % 10 == 0 or step == steps - 1):
                for name, value in scalars.items():
                    writer.add_scalar(name, float(value), step)
                writer.add_scalar("gradient_norm", float(norm), step)
                writer.add_scalar("learning_rate", base[0][0] * factor, step)
                bar.set_postfix({k: f"{float(v):.3f}" for k, v in list(scalars.items())[:3]}, refresh=False)
            stopping = distributed.any_process(stop.raised, device)
            if main and (stopping or (step + 1) % save_every == 0 or step + 1 == steps):
                _save(state_file, module, groups, base, step + 1)
            if stopping:
                raise KeyboardInterrupt


class _StopSignal:
    """Ctrl-C and SIGTERM set `raised`, so that the step at hand is finished and saved before the run stops."""

    raised = False

    def __enter__(self) -> None:
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, *_: object) -> None:
        self.raised = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _save(
    path: Path, module: nn.Module, groups: list[torch.optim.Optimizer], base: list[list[float]], step: int
) -> None:
    state = {
        "step": step,
        "base_rates": base,
        "module": module.state_dict(),
        "optimizers": [o.state_dict() for o in groups],
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def _base_rates(path: Path) -> list[list[float]]:
    return torch.load(path, weights_only=True, map_location="cpu")["base_rates"]


def _load(path: Path, module: nn.Module, groups: list[torch.optim.Optimizer]) -> int:
    """Restore an earlier run's state; returns the next step, 0 when there is none."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")  # loading into module and optimizers moves it
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(groups, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]
