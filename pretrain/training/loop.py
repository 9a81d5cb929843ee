"""The training loop that pre-training and distillation share: it resumes bit for bit, logs, and stops safely."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretrain.training import distributed, state
from pretrain.training.optimizers import LearningRates
from pretrain.training.settings import TrainingSettings
from pretrain.training.step_batch_norm import StepBatchNorm
from pretrain.training.stop_signal import StopSignal
from pretrain.training.throughput import Meter, matmul_peak
from upstreams.cpu_training.fast_training import FastTraining
from upstreams.errors import UserError

LOG_EVERY = 10  # steps


class Task(Protocol):
    """What the loop trains. Losses and logged values are sums over micro-batches and ranks."""

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained."""

    def batches(self, first: int) -> Iterable[Any]:
        """Return this rank's micro-batches, from step `first` on."""

    def prepare(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        """Prepare global micro-batch `number`; also return its item counts (a vector) for normalisation."""

    def loss(self, prepared: Any, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the loss and of the logged sums. totals: item counts of the whole step."""

    def work(self, prepared: Any) -> tuple[float, float]:
        """Return the seconds of audio in the micro-batch and the FLOPs of training on them."""

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return what to log of a step, from the sums of what `loss` returned."""


def fit(
    task: Task,
    optimizers: list[torch.optim.Optimizer],
    settings: TrainingSettings,
    *,
    steps: int,
    folder: Path,
    seed: int,
    title: str = "",
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train `task.module` up to step `steps`; resume from the newest state in `folder`.

    The random generator is seeded with the number of each micro-batch, so a resumed run and a run with another world
    size draw the same numbers. Under torchrun the ranks share a step's micro-batches and gradients are summed over
    them; rank 0 logs and saves. validate: called on every rank before a state is saved; its values are logged under
    valid/, and the state of lowest "loss" is the best one. Without it the best state is that of lowest training loss.
    Raises UserError after `max_skipped` consecutive steps without a finite gradient. On SIGTERM or Ctrl-C it saves the
    state of the last complete step and raises SystemExit(143) or KeyboardInterrupt.
    """
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            stack.enter_context(state.States(folder).locked())
        run = _Run(task, optimizers, settings, steps=steps, folder=folder, seed=seed)
        if run.step >= steps:
            return
        stop = stack.enter_context(StopSignal())
        writer = None
        if run.main:
            writer = stack.enter_context(SummaryWriter(str(folder), purge_step=run.step))
        bar = stack.enter_context(
            tqdm(total=steps, initial=run.step, desc=title, unit="step", mininterval=2.0, disable=not run.main)
        )
        batches = iter(task.batches(run.step))
        while run.step < steps:
            sums = run.compute_gradients(batches, stop)
            if sums is None:
                run.save(math.nan if validate is not None else run.mean_loss())
                distributed.barrier()
                raise stop.exception
            norm = run.update(sums)
            if run.step % LOG_EVERY == 0 or run.step == steps - 1:
                values = run.logged_values(sums, norm)
                if writer is not None:
                    for name, value in values.items():
                        writer.add_scalar(name, value, run.step)
                bar.set_postfix({k: f"{v:.3f}" for k, v in list(values.items())[:3]}, refresh=False)
            run.step += 1
            bar.update()
            if run.step % settings.save_every == 0 or run.step == steps:
                with run.computing():
                    measured = validate() if validate is not None else {"loss": run.mean_loss()}
                if writer is not None and validate is not None:
                    for name, value in measured.items():
                        writer.add_scalar(f"valid/{name}", value, run.step)
                run.save(measured["loss"])
        run.finish()


class _Run:
    """The training state between steps."""

    def __init__(
        self,
        task: Task,
        optimizers: list[torch.optim.Optimizer],
        settings: TrainingSettings,
        *,
        steps: int,
        folder: Path,
        seed: int,
    ) -> None:
        self.task, self.optimizers, self.settings, self.steps, self.seed = task, optimizers, settings, steps, seed
        self.main = distributed.rank() == 0
        self.trained = [p for p in task.module.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.rates = LearningRates(optimizers, settings, steps)
        self.micro_batches = settings.micro_batches
        self.own_micro_batches = distributed.micro_batches_of_rank(self.micro_batches)
        self.batch_norm = StepBatchNorm(task.module, self.micro_batches)
        self.ema = None
        if settings.ema:
            self.ema = AveragedModel(task.module, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.loss_sum, self.loss_count = 0.0, 0  # since the last saved state
        self.states = state.States(folder, settings.keep)
        self._resume()
        dtype = settings.compute_dtype(self.device)
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.meter = Meter(self.device, matmul_peak(self.device, dtype))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Enter autocast and, on a CPU without torch.compile, the faster implementations.

        A function mode splits a compiled graph at every function that it sees.
        """
        fast = self.device.type == "cpu" and not self.settings.compile
        with self.autocast, FastTraining() if fast else contextlib.nullcontext():
            yield

    def compute_gradients(self, batches: Iterator[Any], stop: StopSignal) -> dict[str, Tensor] | None:
        """Compute the gradients of one step; return the sums to log, or None if the run shall stop."""
        self.rates.set(self.step)
        first = self.step * self.micro_batches
        try:
            prepared = [self.task.prepare(next(batches), first + k) for k in self.own_micro_batches]
        except Exception:
            # Ctrl-C also ends the worker processes that read audio, so the loader fails.
            if not stop.requested:
                raise
            prepared = []
        if distributed.any_rank(stop.requested):
            return None
        totals = distributed.all_reduce(torch.stack([counts for _, counts in prepared]).sum(0))
        self.batch_norm.begin_step()
        sums: dict[str, Tensor] = {}
        # Every rank takes part in as many rounds as the rank with most micro-batches: `any_rank` is a collective.
        for turn in range(-(-self.micro_batches // distributed.world_size())):
            if distributed.any_rank(stop.requested):
                self._undo_step()
                return None
            if turn >= len(prepared):
                continue
            micro_batch, _ = prepared[turn]
            self.batch_norm.begin_micro_batch()
            torch.manual_seed(self.seed * 1_000_003 + first + self.own_micro_batches[turn])
            with self.computing():
                loss, parts = self.task.loss(micro_batch, totals)
            loss.backward()
            self.batch_norm.end_micro_batch()
            for name, part in (parts | {"loss": loss}).items():
                sums[name] = sums[name] + part.detach() if name in sums else part.detach()
            self.meter.add(*self.task.work(micro_batch))
        distributed.all_reduce_gradients(self.trained)
        self.batch_norm.end_step(self.step)
        return sums

    def update(self, sums: dict[str, Tensor]) -> float:
        """Step the optimizers, or undo the step if its gradient is not finite; return the gradient's norm."""
        norm = float(nn.utils.clip_grad_norm_(self.trained, self.settings.clip))
        loss = float(distributed.all_reduce(sums["loss"]))
        if math.isfinite(norm) and math.isfinite(loss):
            for optimizer in self.optimizers:
                optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(self.task.module)
            self.skipped_in_a_row = 0
            self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
            self._clear_gradients()
            return norm
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.main:
            tqdm.write(
                f"step {self.step} skipped: loss {loss}, gradient norm {norm} ({self.skipped_in_a_row} in a row)"
            )
        if self.skipped_in_a_row >= self.settings.max_skipped:
            raise UserError(self._failure(loss, norm))
        self._undo_step()
        return norm

    def logged_values(self, sums: dict[str, Tensor], norm: float) -> dict[str, float]:
        """Return what is logged of this step, over all ranks."""
        names = sorted(sums)
        totals = [sums[name].clone() for name in names]
        distributed.all_reduce_in_place(totals)
        values = self.task.summary(dict(zip(names, totals, strict=True)))
        values |= {"gradient_norm": norm, "learning_rate": self.rates.first(self.step)}
        values |= {"skipped_steps": float(self.skipped)}
        return values | self.meter.read(distributed.world_size())

    def mean_loss(self) -> float:
        """Return the mean loss of the steps since the last saved state; NaN if there is none."""
        return self.loss_sum / self.loss_count if self.loss_count else math.nan

    def save(self, loss: float) -> None:
        """Write the state before the next step. loss: decides which state is the best; NaN if unknown."""
        if not self.main:
            return
        content = {
            "step": self.step,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "base_rates": self.rates.initial,
            "module": self.task.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": None if self.ema is None else self.ema.state_dict(),
        }
        self.states.write(self.step, loss, content)
        self.loss_sum, self.loss_count = 0.0, 0

    def finish(self) -> None:
        """Copy the moving average, if there is one, into the module."""
        if self.ema is not None:
            self.task.module.load_state_dict(self.ema.module.state_dict())

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _undo_step(self) -> None:
        self._clear_gradients()
        self.batch_norm.undo_step(self.step)

    def _resume(self) -> None:
        newest = None
        if self.main:
            self.states.remove_temporary_files()
            newest = self.states.newest()
        path = distributed.broadcast(str(newest or ""))
        if not path:
            return
        saved = state.load(Path(path))  # on the CPU; load_state_dict copies to the device
        self.task.module.load_state_dict(saved["module"])
        for optimizer, content in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        if self.ema is not None:
            self.ema.load_state_dict(saved["average"])
        self.rates.initial = saved["base_rates"]
        self.step = saved["step"]
        self.skipped, self.skipped_in_a_row = saved["skipped"]
        if self.step >= self.steps:
            self.finish()

    def _failure(self, loss: float, norm: float) -> str:
        named = self.task.module.named_parameters()
        broken = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        where = f", first bad gradient in {broken[0]}" if broken else ""
        return (
            f"training in {self.states.folder} stopped at step {self.step}: {self.skipped_in_a_row} consecutive steps "
            f"had a loss or gradient that is not finite (loss {loss}, gradient norm {norm}{where}; "
            f"{self.skipped} skipped steps in total) at learning rate {self.rates.first(self.step):.3g}: "
            "lower lr or clip, or check the audio"
        )
