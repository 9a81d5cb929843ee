"""The training loop that pre-training and distillation share: resumable to the bit, logged, interrupted safely."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretrain.training import distributed, state
from pretrain.training.muon import Muon
from pretrain.training.throughput import Meter, matmul_peak
from upstreams.cpu_training.fast_training import FastTraining
from upstreams.errors import UserError
from upstreams.quantization.quantizers import Quantizer

LOG_EVERY = 10  # steps


@dataclass(frozen=True, kw_only=True)
class Training:
    """How anything is trained: what a recipe of pre-training and one of distillation have in common."""

    batch_seconds: float = 60.0  # of audio in a step, over all processes
    micro_batch_seconds: float = 0.0  # what one device takes at once; 0: batch_seconds divided by the processes
    crop_seconds: float = 4.0
    workers: int = 0  # processes of each device that read audio ahead
    optimizer: str = "muon"  # muon (matrices of the blocks; AdamW the rest) or adamw
    lr: float = 3e-3  # of AdamW: norms, biases, embeddings, heads
    matrix_lr: float = 1.5e-2  # of Muon: the blocks' weight matrices
    scale_lr: float = 1e-4  # of the quantizers' scales and shifts
    weight_decay: float = 0.01
    warm_up: float = 0.1  # of the steps
    decay: str = "linear"  # or cosine; both to 0
    clip: float = 1.0
    ema: float = 0.0  # decay of a moving average of the weights, which then is what is kept; 0: none
    precision: str = "auto"  # float32, bfloat16 (autocast), or auto: bfloat16 on a GPU
    compile: bool = False  # the encoder's blocks by torch.compile
    save_every: int = 100  # steps between states that an interrupted run goes on from
    keep: int = 2  # newest states that stay, beside the one of lowest loss
    max_skipped: int = 10  # steps in a row without a finite gradient, after which training stops

    def check(self, where: str) -> None:
        """Raise UserError on a value that is out of range."""
        for key in ("save_every", "keep", "max_skipped", "batch_seconds", "crop_seconds", "clip"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} is {getattr(self, key)} in {where}, but must be more than 0")
        for key, choices in (
            ("optimizer", ("muon", "adamw")),
            ("decay", ("linear", "cosine")),
            ("precision", ("auto", "float32", "bfloat16")),
        ):
            if getattr(self, key) not in choices:
                raise UserError(f"{key} is {getattr(self, key)!r} in {where}, but must be {' or '.join(choices)}")
        if not 0 <= self.micro_batch_seconds <= self.batch_seconds:
            raise UserError(
                f"micro_batch_seconds is {self.micro_batch_seconds:g} in {where}, but must be between 0 and "
                f"batch_seconds ({self.batch_seconds:g})"
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema} in {where}, but must be in [0, 1)")

    @property
    def micro_batches(self) -> int:
        """Of a step, over all processes."""
        if not self.micro_batch_seconds:
            return distributed.world()
        return max(1, round(self.batch_seconds / self.micro_batch_seconds))

    @property
    def seconds_at_once(self) -> float:
        """Of audio in a micro-batch."""
        return self.batch_seconds / self.micro_batches

    def dtype(self, device: torch.device) -> torch.dtype:
        """What matrices are multiplied in."""
        half = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        return torch.bfloat16 if half else torch.float32


Settings = TypeVar("Settings", bound=Training)


def settled(config: Settings, about: Path) -> Settings:
    """`config` with as many micro-batches a step as the run that `about`, its config.json, tells of.

    A run that is gone on with by another number of processes so trains on the very same micro-batches, whoever computes
    them; where there is no run yet, they are those of `config`.
    """
    count = config.micro_batches
    if not config.micro_batch_seconds and about.is_file():
        count = json.loads(about.read_text(encoding="utf-8")).get("micro_batches", count)
    count = int(distributed.from_first(str(count)))
    return dataclasses.replace(config, micro_batch_seconds=config.batch_seconds / count)


class Task(Protocol):
    """What is trained. Losses and what is logged are sums over micro-batches and processes."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def batches(self, first: int) -> Iterable[Any]:
        """This process's micro-batches, from step `first` on."""

    def prepare(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        """Micro-batch `number` of all as `loss` wants it, and how many items its means are over (a vector)."""

    def loss(self, prepared: Any, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's part of the loss and of what is logged; totals: the items of the whole step."""

    def work(self, prepared: Any) -> tuple[float, float]:
        """Seconds of audio in it and the FLOPs of training on them."""

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """What to log of a step, from the sums of what `loss` returned."""


def optimizers(module: nn.Module, config: Training, matrix_parent: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon on the weight matrices inside `matrix_parent`, AdamW on everything else that is trained, or AdamW alone.

    `matrix_lr` is in units of AdamW's update size. Vectors, scales, embeddings and heads are left to AdamW, as Muon's
    author advises; BiT trains quantizers' scales and shifts at a rate of their own, `scale_lr`, without decay.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    scales = {id(p): p for m in module.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    matrices: dict[int, Tensor] = {}
    if config.optimizer == "muon":
        inside = {id(p) for p in matrix_parent.parameters()}
        matrices = {id(p): p for p in trained if id(p) in inside and p.ndim == 2 and min(p.shape) > 1}
    others = [p for p in trained if id(p) not in matrices | scales]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": config.weight_decay}]
    if scales:
        groups.append({"params": list(scales.values()), "lr": config.scale_lr, "weight_decay": 0.0})
    adam = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    if not matrices:
        return [adam]
    return [Muon(matrices.values(), lr=config.matrix_lr, weight_decay=config.weight_decay), adam]


def compile_blocks(blocks: Iterable[nn.Module], config: Training) -> None:
    """torch.compile an encoder's blocks where the configuration asks for it, once for batches of any shape."""
    if config.compile:
        for block in blocks:
            block.compile(dynamic=True)


def warm_up_decay(step: int, steps: int, warm_up: float, decay: str = "linear") -> float:
    """Factor of the learning rate: linear warm-up over the fraction `warm_up`, then linear or cosine decay to 0."""
    rising = max(1, int(steps * warm_up))
    left = (steps - step) / max(1, steps - rising)
    if decay == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * min(1.0, left))
    return min((step + 1) / rising, left)


def fit(
    task: Task,
    updates: list[torch.optim.Optimizer],
    config: Training,
    steps: int,
    folder: Path,
    *,
    seed: int = 0,
    title: str = "",
    validate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train `task.module` for `steps` steps, from where the states in `folder` say an earlier run stopped.

    What is random in a micro-batch is drawn after seeding with its number, so that neither a resumed run nor another
    number of processes changes what is drawn. Under torchrun gradients are summed over the processes, which share a
    step's micro-batches; the first one logs and saves. validate: called before every state, in every process, for what
    to log under valid/; the state of lowest "loss" of it is the best one, without it that of lowest training loss.
    Raises UserError when `max_skipped` steps in a row have no finite gradient. On SIGTERM or Ctrl-C saves the last
    whole step's state and raises SystemExit(143) or KeyboardInterrupt.
    """
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            stack.enter_context(state.States(folder).claimed())
        run = _Run(task, updates, config, steps, folder, seed)
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
            sums = run.compute(batches, stop)
            if sums is None:
                run.save(math.nan if validate is not None else run.mean_loss())
                distributed.wait()
                raise stop.ending
            norm = run.update(sums)
            if run.step % LOG_EVERY == 0 or run.step == steps - 1:
                values = run.values(sums, norm)
                if writer is not None:
                    for name, value in values.items():
                        writer.add_scalar(name, value, run.step)
                bar.set_postfix({k: f"{v:.3f}" for k, v in list(values.items())[:3]}, refresh=False)
            run.step += 1
            bar.update()
            if run.step % config.save_every == 0 or run.step == steps:
                with run.autocast, FastTraining():
                    found = validate() if validate is not None else {"loss": run.mean_loss()}
                if writer is not None and validate is not None:
                    for name, value in found.items():
                        writer.add_scalar(f"valid/{name}", value, run.step)
                run.save(found["loss"])
        run.finish()


class _Run:
    """What a run holds between steps."""

    def __init__(
        self,
        task: Task,
        updates: list[torch.optim.Optimizer],
        config: Training,
        steps: int,
        folder: Path,
        seed: int,
    ) -> None:
        self.task, self.updates, self.config, self.steps, self.seed = task, updates, config, steps, seed
        self.main = distributed.rank() == 0
        self.trained = [p for p in task.module.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.base = [[group["lr"] for group in o.param_groups] for o in updates]
        self.count = config.micro_batches
        self.share = distributed.share(self.count)
        # Running statistics are averaged over a step's micro-batches: every one starts from the step's first values.
        self.norms = [m for m in task.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.running = [b for m in self.norms for b in (m.running_mean, m.running_var) if b is not None]
        self.average = None
        if config.ema:
            self.average = AveragedModel(task.module, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.step = self.skipped = self.in_a_row = 0
        self.loss_sum, self.loss_count = 0.0, 0
        self.states = state.States(folder, config.keep)
        self._resume()
        dtype = config.dtype(self.device)
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.meter = Meter(self.device, matmul_peak(self.device, dtype))

    def compute(self, batches: Iterator[Any], stop: StopSignal) -> dict[str, Tensor] | None:
        """Gradients of one step and the sums of what is logged; None when the run is asked to stop."""
        for updates, rates in zip(self.updates, self.base, strict=True):
            for group, rate in zip(updates.param_groups, rates, strict=True):
                group["lr"] = rate * self._factor()
        try:
            prepared = [self.task.prepare(next(batches), self.step * self.count + k) for k in self.share]
        except Exception:
            # Ctrl-C reaches the processes that read audio as well, and they go without a word.
            if not stop.number:
                raise
            prepared = []
        if distributed.any_process(stop.number != 0):
            return None
        totals = distributed.summed(torch.stack([counts for _, counts in prepared]).sum(0))
        before = [buffer.clone() for buffer in self.running]
        after = [torch.zeros_like(buffer) for buffer in self.running]
        sums: dict[str, Tensor] = {}
        for turn in range(-(-self.count // distributed.world())):
            if distributed.any_process(stop.number != 0):
                self._forget_step(before)
                return None
            if turn >= len(prepared):
                continue
            for buffer, value in zip(self.running, before, strict=True):
                buffer.copy_(value)
            item, _ = prepared[turn]
            torch.manual_seed(self.seed * 1_000_003 + self.step * self.count + self.share[turn])
            with self.autocast, FastTraining():
                loss, parts = self.task.loss(item, totals)
            loss.backward()
            for buffer, total in zip(self.running, after, strict=True):
                total += buffer
            for name, part in (parts | {"loss": loss}).items():
                sums[name] = sums[name] + part.detach() if name in sums else part.detach()
            self.meter.add(*self.task.work(item))
        distributed.sum_gradients(self.trained)
        distributed.sum_in_place(after)
        for buffer, total in zip(self.running, after, strict=True):
            buffer.copy_(total / self.count)
        self._count_batches(self.step + 1)
        self.before = before
        return sums

    def update(self, sums: dict[str, Tensor]) -> float:
        """One step of the optimizers, unless the gradient is not finite; returns its norm."""
        norm = float(nn.utils.clip_grad_norm_(self.trained, self.config.clip))
        loss = float(distributed.summed(sums["loss"]))
        if math.isfinite(norm) and math.isfinite(loss):
            for optimizer in self.updates:
                optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.task.module)
            self.in_a_row = 0
            self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
            for optimizer in self.updates:
                optimizer.zero_grad(set_to_none=True)
            return norm
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.main:
            tqdm.write(f"step {self.step} skipped: loss {loss}, gradient norm {norm} ({self.in_a_row} in a row)")
        if self.in_a_row >= self.config.max_skipped:
            raise UserError(self._report(loss, norm))
        self._forget_step(self.before)
        return norm

    def values(self, sums: dict[str, Tensor], norm: float) -> dict[str, float]:
        """What is logged of this step, of all processes together."""
        names = sorted(sums)
        totals = [sums[name].clone() for name in names]
        distributed.sum_in_place(totals)
        values = self.task.summary(dict(zip(names, totals, strict=True)))
        values |= {"gradient_norm": norm, "learning_rate": self.base[0][0] * self._factor()}
        values |= {"skipped_steps": float(self.skipped)}
        return values | self.meter.read(distributed.world())

    def mean_loss(self) -> float:
        """Of the steps since the state before."""
        return self.loss_sum / self.loss_count if self.loss_count else math.nan

    def save(self, loss: float) -> None:
        """Write the state from which the next step follows; loss: by which the best one is chosen, NaN for unknown."""
        if not self.main:
            return
        content = {
            "step": self.step,
            "skipped": [self.skipped, self.in_a_row],
            "base_rates": self.base,
            "module": self.task.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.updates],
            "average": None if self.average is None else self.average.state_dict(),
        }
        self.states.write(self.step, loss, content)
        self.loss_sum, self.loss_count = 0.0, 0

    def finish(self) -> None:
        """The moving average, where there is one, becomes the module's weights."""
        if self.average is not None:
            self.task.module.load_state_dict(self.average.module.state_dict())

    def _factor(self) -> float:
        return warm_up_decay(self.step, self.steps, self.config.warm_up, self.config.decay)

    def _forget_step(self, running: list[Tensor]) -> None:
        for optimizer in self.updates:
            optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(self.running, running, strict=True):
            buffer.copy_(value)
        self._count_batches(self.step)

    def _count_batches(self, steps: int) -> None:
        """Batch normalisation counts steps, however many micro-batches and processes they are made of."""
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(steps)

    def _resume(self) -> None:
        newest = None
        if self.main:
            self.states.remove_leftovers()
            newest = self.states.newest()
        path = distributed.from_first(str(newest or ""))
        if not path:
            return
        saved = state.load(Path(path))  # loading into module and optimizers moves it
        self.task.module.load_state_dict(saved["module"])
        for optimizer, content in zip(self.updates, saved["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.base = saved["base_rates"]
        self.step = saved["step"]
        self.skipped, self.in_a_row = saved["skipped"]
        if self.step >= self.steps:
            self.finish()

    def _report(self, loss: float, norm: float) -> str:
        named = self.task.module.named_parameters()
        broken = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        where = f", first in {broken[0]}" if broken else ""
        return (
            f"training stopped at step {self.step} of {self.states.folder}: {self.in_a_row} steps in a row had a loss "
            f"or gradient that is not finite (loss {loss}, gradient norm {norm}{where}; {self.skipped} in all) at "
            f"learning rate {self.base[0][0] * self._factor():.3g}: lower lr or clip, or look at the audio"
        )


class StopSignal:
    """Ctrl-C and SIGTERM set `number`, so that the micro-batch at hand is finished before the run saves and stops."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopSignal:
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, *_: object) -> None:
        self.number = number

    @property
    def ending(self) -> BaseException:
        """What ends the process as the signal would have: with 130 after Ctrl-C, with 143 after SIGTERM."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
