"""The plan of a matrix in words: every stage that is left with its state, estimates and command."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from runners.matrix import layer_choice, locks, training
from runners.matrix.cell import Cell, Training, finished, trained
from runners.matrix.command import Command, stale_because
from runners.matrix.estimate import Estimate, audio_group
from runners.matrix.progress import duration
from runners.matrix.results import command as shell
from runners.matrix.stale import kept_aside, stale_results
from runners.tasks import TASKS

Times = Callable[[Command], tuple[float | None, str]]


def show_plan(
    cells: Sequence[Cell],
    commands: Sequence[Command],
    estimator: Callable[[Training], Estimate],
    times: Times,
    *,
    jobs: int,
    console: Console,
) -> None:
    """Print every stage with its state and estimates, the totals, the commands, and why results are stale.

    times: expected seconds of a command and where they are from.
    """
    table = Table(title="planned stages", box=None, pad_edge=False)
    table.add_column("stage", overflow="fold")
    table.add_column("state")
    for name in ("steps", "time", "GPU hours", "memory", "new disk"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source")
    total, lines = _Total(), []
    for stage in commands:
        seconds, source = times(stage)
        gpus = stage.resources.gpus
        total.add(seconds, gpus, source)
        numbers = (duration(seconds), gpu_hours(seconds, gpus), size(stage.resources.memory))
        steps = str(stage.size.steps or "-")
        table.add_row(stage.name, _command_state(stage), steps, *numbers, size(stage.size.disk_bytes), source)
        lines.append(f"{stage.name}: {stage.shown}")
    trainings = [each for cell in cells for each in cell.trainings]
    stored: dict[object, int] = {}  # bytes of features by audio group, which its trainings share
    features = 0
    states = [state(each) for each in trainings]
    if all(now == "done" for now in states):
        estimator = _no_estimate  # estimating imports torch, which a finished matrix does not need
    for each, now in zip(trainings, states, strict=True):
        estimate = estimator(each)
        steps = str(each.config["runner"].get("total_steps", "-"))
        group, needed = audio_group(each.cell), estimate.feature_bytes or 0
        added = max(0, needed - stored.get(group, 0))
        stored[group] = max(needed, stored.get(group, 0))
        if now == "done":
            table.add_row(each.name, now, steps, "-", "-", "-", "-", "-")
            continue
        features += added
        gpus = int(each.cell.device == "cuda")
        total.add(estimate.seconds, gpus, estimate.source)
        numbers = (duration(estimate.seconds), gpu_hours(estimate.seconds, gpus), size(estimate.memory_bytes))
        table.add_row(each.name, now, steps, *numbers, size(added + estimate.checkpoint_bytes), estimate.source)
        lines.append(f"{each.name}: {_shown(each)}")
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    trained_here = f"{total.stages - len(commands)} of {len(trainings)} trainings to run, {len(cells)} cells"
    made_here = f"{len(commands)} commands that make checkpoints, " if commands else ""
    expected = f"about {duration(total.seconds / max(1, min(jobs, total.stages)))} with {jobs} jobs"
    if total.gpu_seconds:
        expected = f"about {gpu_hours(total.gpu_seconds, 1)} GPU hours"
    if total.unknown:
        expected += f", plus {total.unknown} of unknown time"
    console.print(f"{made_here}{trained_here}: {expected}", soft_wrap=True)
    store = cells[0].store
    if store is not None and features:
        limit = f"the store {store.folder} keeps at most {size(store.max_bytes)}"
        console.print(f"features: about {size(features)}; {limit}", soft_wrap=True)
    if total.sources & {"MACs", "FLOPs"}:
        assumed = ", on a GPU for 30 TFLOP/s" if total.gpu_seconds else ""
        console.print(f"Times from MACs may be wrong by a factor of 3{assumed}; a measured training replaces them.")
    _show_stale(cells, commands, console)


class _Total:
    """Sums over the stages that are to run."""

    def __init__(self) -> None:
        self.stages, self.unknown, self.seconds, self.gpu_seconds = 0, 0, 0.0, 0.0
        self.sources: set[str] = set()

    def add(self, seconds: float | None, gpus: int, source: str) -> None:
        """Add a stage."""
        self.stages += 1
        self.unknown += seconds is None
        self.seconds += seconds or 0.0
        self.gpu_seconds += gpus * (seconds or 0.0)
        self.sources.add(source)


def _show_stale(cells: Sequence[Cell], commands: Sequence[Command], console: Console) -> None:
    again, staying = stale_results(cells)
    lines = [f"{stage.name}: stale, because {reason}" for stage in commands if (reason := stale_because(stage))]
    lines += [f"{stale}" for stale in again]
    lines += [f"{stale}; it stays, --rerun-stale computes it again" for stale in staying]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(each: Training) -> str:
    """Return the command that trains a head, or that scores the first hidden state of a task without heads."""
    if TASKS[each.cell.task].has_head:
        return shell(training.train_arguments(each))
    return shell(layer_choice.arguments(each.fold, "dev", 0))


def _no_estimate(training: Training) -> Estimate:
    return Estimate(seconds=None, feature_bytes=None, checkpoint_bytes=0, memory_bytes=0, source="")


def _command_state(stage: Command) -> str:
    if locks.is_held(stage.folder):
        return "running"
    return "waits" if stage.needs else "new"


def state(each: Training) -> str:
    """Return the state of a training in words."""
    if each.cell.is_open:
        return "waits"
    if finished(each.fold) is not None or kept_aside(each.fold) is not None:
        return "done"
    if trained(each) is not None:
        return "trained"
    if locks.is_held(each.folder):
        return "running"
    step = training.resumable_step(each)
    return "new" if step is None else f"resumes at {step}"


def size(number: float) -> str:
    """Return `3.2 GB` or `120 MB` for a number of bytes."""
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


def gpu_hours(seconds: float | None, gpus: int) -> str:
    """Return hours of one GPU ; `-` for a stage that needs none, `?` for unknown seconds."""
    if not gpus:
        return "-"
    if seconds is None:
        return "?"
    hours = seconds * gpus / 3600
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
