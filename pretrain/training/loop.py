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

from pretrain.training import distributed, memory, state
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
        """Prepare global micro-batch `number`; also return its item counts (a vector) for normalisation.

        All counts are 0 if none of its files could be read: such a micro-batch contributes nothing to the step.
        """

    def unreadable(self, batch: Any) -> int:
        """Return how many files of the micro-batch could not be read."""

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
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> None:
    """Train `task.module` up to step `steps`; resume from the newest state in `folder`.

    The random generator is seeded with the number of each micro-batch, so a resumed run and a run with another world
    size draw the same numbers. Under torchrun the ranks share a step's micro-batches and gradients are summed over
    them; all ranks start from rank 0's weights, and rank 0 logs and saves. validate: called on every rank before a
    state is saved, with the module that would be the result: the moving average, if there is one. Its values are logged
    under valid/. Raises UserError after `max_skipped` consecutive steps without audio or a finite gradient, and if the
    memory of the device or of the CPU is too small. On SIGTERM or Ctrl-C it saves the state of the last complete step
    and raises SystemExit(143) or KeyboardInterrupt.
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
        stack.enter_context(memory.explained(run.device, lambda: f"step {run.step} in {folder}"))
        batches = iter(task.batches(run.step))
        try:
            while run.step < steps:
                sums = run.compute_gradients(batches, stop)
                if sums is None:
                    run.save()
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
                    if validate is not None:
                        with run.computing():
                            measured = validate(run.result)
                        if writer is not None:
                            for name, value in measured.items():
                                writer.add_scalar(f"valid/{name}", value, run.step)
                    run.save()
        finally:
            del batches  # ends the processes that read audio
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
        distributed.broadcast_module(task.module)
        self.ema = None
        if settings.ema:
            self.ema = AveragedModel(task.module, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.unreadable = 0.0  # files that could not be read since the start of the training, over all ranks
        self.unreadable_now = 0  # of this step, on this rank
        self.states = state.States(folder, settings.keep)
        self._resume()
        dtype = settings.compute_dtype(self.device)
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.meter = Meter(self.device, matmul_peak(self.device, dtype))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Enter autocast and, on a CPU without torch.compile and checkpointing, the faster implementations.

        A function mode splits a compiled graph at every function that it sees, and checkpointing repeats the forward
        pass outside of it.
        """
        plain = not (self.settings.compile or self.settings.checkpointing)
        with self.autocast, FastTraining() if self.device.type == "cpu" and plain else contextlib.nullcontext():
            yield

    def compute_gradients(self, batches: Iterator[Any], stop: StopSignal) -> dict[str, Tensor] | None:
        """Compute the gradients of one step; return the sums to log, or None if the run shall stop."""
        self.rates.set(self.step)
        first = self.step * self.micro_batches
        try:
            prepared = [self._prepare(next(batches), first + k) for k in self.own_micro_batches]
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
            micro_batch, counts = prepared[turn]
            self.batch_norm.begin_micro_batch()
            if bool(counts.any()):
                torch.manual_seed(self.seed * 1_000_003 + first + self.own_micro_batches[turn])
                with self.computing():
                    loss, parts = self.task.loss(micro_batch, totals)
                loss.backward()
                for name, part in (parts | {"loss": loss}).items():
                    sums[name] = sums[name] + part.detach() if name in sums else part.detach()
                self.meter.add(*self.task.work(micro_batch))
            self.batch_norm.end_micro_batch()
        distributed.all_reduce_gradients(self.trained)
        self.batch_norm.end_step(self.step)
        return sums

    def update(self, sums: dict[str, Tensor]) -> float:
        """Step the optimizers, or undo the step if its gradient is not finite; return the gradient's norm."""
        norm = float(nn.utils.clip_grad_norm_(self.trained, self.settings.clip))
        computed = float("loss" in sums)
        own = [float(sums["loss"]) if computed else 0.0, computed, float(self.unreadable_now)]
        loss, computed, unreadable = distributed.all_reduce(torch.tensor(own, dtype=torch.float64)).tolist()
        self.unreadable, self.unreadable_now = self.unreadable + unreadable, 0
        if computed and math.isfinite(norm) and math.isfinite(loss):
            for optimizer in self.optimizers:
                optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(self.task.module)
            self.skipped_in_a_row = 0
            self._clear_gradients()
            return norm
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.main:
            reason = f"loss {loss}, gradient norm {norm}" if computed else "none of its audio files could be read"
            tqdm.write(f"step {self.step} skipped: {reason} ({self.skipped_in_a_row} in a row)")
        if self.skipped_in_a_row >= self.settings.max_skipped:
            raise UserError(self._failure(loss, norm) if computed else self._no_audio())
        self._undo_step()
        return norm

    def logged_values(self, sums: dict[str, Tensor], norm: float) -> dict[str, float]:
        """Return what is logged of this step, over all ranks."""
        values = self.task.summary(distributed.all_reduce_named(sums))
        values |= {"gradient_norm": norm, "learning_rate": self.rates.first(self.step)}
        values |= {"skipped_steps": float(self.skipped), "unreadable_files": self.unreadable}
        return values | self.meter.read(distributed.world_size())

    @property
    def result(self) -> nn.Module:
        """The module whose weights the training would return now."""
        return self.task.module if self.ema is None else self.ema.module

    def save(self) -> None:
        """Write the state before the next step."""
        if not self.main:
            return
        content = {
            "step": self.step,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "unreadable_files": self.unreadable,
            "base_rates": self.rates.initial,
            "module": self.task.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": None if self.ema is None else self.ema.state_dict(),
        }
        self.states.write(self.step, content)

    def finish(self) -> None:
        """Copy the moving average, if there is one, into the module."""
        if self.ema is not None:
            self.task.module.load_state_dict(self.ema.module.state_dict())

    def _prepare(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        self.unreadable_now += self.task.unreadable(batch)
        return self.task.prepare(batch, number)

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
        self.unreadable = saved["unreadable_files"]
        if self.step >= self.steps:
            self.finish()

    def _no_audio(self) -> str:
        return (
            f"training in {self.states.folder} stopped at step {self.step}: none of the audio files of "
            f"{self.skipped_in_a_row} consecutive steps could be read; the lines above name them"
        )

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
