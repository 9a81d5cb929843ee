"""The training loop that pre-training and distillation share: it resumes bit for bit, logs, and stops safely.

On a GPU the host only queues work. It reads nothing of a step before the next one is queued, and prepares the next
step's micro-batches while the device computes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretrain.training import distributed, memory, state
from pretrain.training.average import MovingAverage
from pretrain.training.optimizers import LearningRates
from pretrain.training.report import Report, SkippedSteps
from pretrain.training.settings import TrainingSettings
from pretrain.training.step_batch_norm import StepBatchNorm
from pretrain.training.stop_signal import StopSignal
from pretrain.training.task import Task
from pretrain.training.throughput import Meter, matmul_peak
from pretrain.training.transfer import LateValues, Sender
from upstreams.cpu_training.fast_training import FastTraining

LOG_EVERY = 10  # steps


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
    them; all ranks start from rank 0's weights, and rank 0 logs and saves. validate: called every `save_every` steps
    on every rank, with the module that would be the result: the moving average, if there is one. Its values are logged
    under valid/. Raises UserError after `max_skipped` steps in a row without audio or a finite gradient, and if the
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

        def show(values: dict[str, float], step: int, prefix: str = "") -> None:
            if writer is not None:
                for name, value in values.items():
                    writer.add_scalar(f"{prefix}{name}", value, step)

        def finish_step(report: Report | None) -> None:
            if report is not None and (values := run.read(report)):
                show(values, report.step)
                bar.set_postfix({k: f"{v:.3f}" for k, v in list(values.items())[:3]}, refresh=False)

        batches = iter(task.batches(run.step))
        try:
            ahead, unread = run.fetch(batches, run.step, stop), None
            while run.step < steps:
                gradients = run.compute_gradients(ahead, stop)
                if gradients is None:
                    finish_step(unread)
                    run.save()
                    distributed.barrier()
                    raise stop.exception
                if run.step + 1 < steps:
                    ahead = run.fetch(batches, run.step + 1, stop)
                report = run.update(gradients)
                finish_step(unread)
                unread = report
                run.step += 1
                bar.update()
                due = run.step % settings.save_every == 0 or run.step == steps
                if due or run.saved_long_ago():
                    finish_step(unread)
                    unread = None
                    if due and validate is not None:
                        with run.computing():
                            show(validate(run.result), run.step, "valid/")
                    run.save()
        finally:
            del batches  # ends the processes that read audio
        run.finish()


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch on its way to the device, with its number over all steps."""

    number: int
    content: Any
    counts: Tensor  # items, on the CPU
    unreadable: int  # files
    work: tuple[float, float]


@dataclass(frozen=True)
class _Computed:
    """What a step leaves beside the gradients."""

    sums: dict[str, Tensor]  # to log; the loss in every step
    any_audio: bool  # False: no file could be read, on any rank
    unreadable: float  # files, over all ranks


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
        self.trained = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trained.values())).device
        self.sender = Sender(self.device)
        self.rates = LearningRates(optimizers, settings, steps)
        self.micro_batches = settings.micro_batches
        self.own_micro_batches = distributed.micro_batches_of_rank(self.micro_batches)
        self.batch_norm = StepBatchNorm(task.module, self.micro_batches)
        distributed.broadcast_module(task.module)
        self.average = MovingAverage(task.module, settings.ema) if settings.ema else None
        self.step = 0
        self.skipped = SkippedSteps(folder, settings.max_skipped)
        self.unreadable = 0.0  # files that could not be read since the start of the training, over all ranks
        self.states = state.States(folder, settings.keep)
        self.saved_at = time.monotonic()
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

    def fetch(self, batches: Iterator[Any], step: int, stop: StopSignal) -> list[_MicroBatch]:
        """Read and prepare this rank's micro-batches of a step, and send them to the device, which need not be idle."""
        try:
            return [self._sent(next(batches), step * self.micro_batches + k) for k in self.own_micro_batches]
        except Exception:
            # Ctrl-C also ends the worker processes that read audio, so the loader fails.
            if not stop.requested:
                raise
            return []

    def _sent(self, batch: Any, number: int) -> _MicroBatch:
        prepared, counts = self.task.prepare(batch, number)
        unreadable, work = self.task.unreadable(batch), self.task.work(prepared)
        return _MicroBatch(number, self.sender.send(self.task.to_device, prepared), counts, unreadable, work)

    def compute_gradients(self, own: list[_MicroBatch], stop: StopSignal) -> _Computed | None:
        """Queue the gradients of one step; return None if the run shall stop."""
        if distributed.any_rank(stop.requested):
            return None
        self.rates.set(self.step)
        numbers = [torch.cat([m.counts, m.counts.new_tensor([m.unreadable])]) for m in own]
        *counts, unreadable = distributed.all_reduce(torch.stack(numbers).sum(0)).tolist()
        totals = torch.tensor(counts, dtype=torch.float64)
        self.task.begin_step(self._is_logged)
        self.batch_norm.begin_step()
        sums: dict[str, Tensor] = {}
        # Every rank takes part in as many rounds as the rank with most micro-batches: `any_rank` is a collective.
        for turn in range(-(-self.micro_batches // distributed.world_size())):
            if distributed.any_rank(stop.requested):
                self._undo_step()
                return None
            if turn >= len(own):
                continue
            micro_batch = own[turn]
            self.batch_norm.begin_micro_batch()
            if any(micro_batch.counts.tolist()):
                torch.manual_seed(self.seed * 1_000_003 + micro_batch.number)
                with self.computing():
                    loss, parts = self.task.loss(self.sender.arrived(micro_batch.content), totals)
                loss.backward()
                for name, part in ({**parts, "loss": loss} if self._is_logged else {"loss": loss}).items():
                    sums[name] = sums[name] + part.detach() if name in sums else part.detach()
                self.meter.add(*micro_batch.work)
            self.batch_norm.end_micro_batch()
        distributed.all_reduce_gradients(list(self.trained.values()))
        self.batch_norm.end_step(self.step)
        return _Computed(sums, any(counts), unreadable)

    def update(self, gradients: _Computed) -> Report:
        """Queue the update of the weights; return the report of the step.

        The device leaves the update out if loss or gradient are not finite. If no file of the step could be read, there
        is none.
        """
        sums, computed = gradients.sums, gradients.any_audio
        self.unreadable += gradients.unreadable
        present = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        zero = next(iter(self.trained.values())).new_zeros(())
        norms = torch.stack(torch._foreach_norm(list(present.values()))) if computed else zero[None]
        norm, loss = torch.linalg.vector_norm(norms), sums["loss"].clone() if "loss" in sums else zero.clone()
        distributed.all_reduce_in_place([loss])
        values = {("result", "loss"): loss, ("result", "norm"): norm}
        values["result", "bad"] = (~torch.isfinite(norms)).to(torch.uint8).argmax()  # the first one
        if computed:
            skip = ~(torch.isfinite(norm) & torch.isfinite(loss))
            # As torch.nn.utils.clip_grad_norm_ does.
            torch._foreach_mul_(list(present.values()), (self.settings.clip / (norm + 1e-6)).clamp(max=1.0))
            for optimizer in self.optimizers:
                optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
                optimizer.step()
            if self.average is not None:
                self.average.update(self.task.module, skip)
            self.batch_norm.undo_step_if(skip)
            self._clear_gradients()
        else:
            self._undo_step()
        if self._is_logged:
            values |= {("sum", name): value for name, value in sums.items()}
            values |= {("state", name): value for name, value in self.task.state_to_log().items()}
        return Report(self.step, computed, LateValues(values), list(present), self.unreadable, self._is_logged)

    @property
    def _is_logged(self) -> bool:
        return self.step % LOG_EVERY == 0 or self.step == self.steps - 1

    def read(self, report: Report) -> dict[str, float]:
        """Wait until the step of the report is computed; return what to log of it, over all ranks.

        A step without a finite gradient is counted. Raises UserError if there were too many in a row.
        """
        values = report.values.read()
        self.skipped.count(report, values, self.rates.first(report.step))
        if not report.logged:
            return {}
        own = {name: value for (kind, name), value in values.items() if kind == "sum"}
        state = {name: value for (kind, name), value in values.items() if kind == "state"}
        shown = self.task.summary(distributed.all_reduce_named(own) | state)
        shown |= {"gradient_norm": float(values["result", "norm"]), "learning_rate": self.rates.first(report.step)}
        shown |= {"skipped_steps": float(self.skipped.total), "unreadable_files": report.unreadable}
        return shown | self.meter.read(distributed.world_size())

    @property
    def result(self) -> nn.Module:
        """The module whose weights the training would return now."""
        return self.task.module if self.average is None else self.average.module

    def saved_long_ago(self) -> bool:
        """True on every rank if rank 0 wrote no state for `save_minutes`."""
        limit = 60 * self.settings.save_minutes
        return limit > 0 and distributed.any_rank(self.main and time.monotonic() - self.saved_at >= limit)

    def save(self) -> None:
        """Write the state before the next step."""
        self.saved_at = time.monotonic()
        if not self.main:
            return
        content = {
            "step": self.step,
            "skipped": [self.skipped.total, self.skipped.in_a_row],
            "unreadable_files": self.unreadable,
            "base_rates": self.rates.initial,
            "module": self.task.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": None if self.average is None else self.average.module.state_dict(),
        }
        self.states.write(self.step, content)

    def finish(self) -> None:
        """Copy the moving average, if there is one, into the module."""
        if self.average is not None:
            self.task.module.load_state_dict(self.average.module.state_dict())

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
        if self.average is not None:
            self.average.load(saved["average"])
        self.rates.initial = saved["base_rates"]
        self.step = saved["step"]
        self.skipped.total, self.skipped.in_a_row = saved["skipped"]
        self.unreadable = saved["unreadable_files"]
        if self.step >= self.steps:
            self.finish()
