"""One run of a matrix's stages on an engine, reported as they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from runners.matrix import layer_choice, locks
from runners.matrix.cell import Cell, Fold, finished, trained
from runners.matrix.command import Command, is_done, run_command
from runners.matrix.engines.work import Engine, Resources, Work
from runners.matrix.estimate import Estimator
from runners.matrix.folds import write_mean
from runners.matrix.graph import Graph
from runners.matrix.plan import trainings_to_run
from runners.matrix.progress import Board, Stage
from runners.matrix.stale import settle, stale_results
from runners.matrix.training import train_and_test
from runners.matrix.training_cost import CommandTimes
from runners.tasks import TASKS


def run_stage(stage: Stage) -> None:
    """Run one stage in this process, and write the mean over a cell's folds if this was the last one."""
    if isinstance(stage, Command):
        run_command(stage)
        return
    if TASKS[stage.cell.task].has_head:
        train_and_test(stage)
    else:
        layer_choice.choose_and_test(stage.fold)
    write_mean(stage.cell)


class Execution:
    """The stages of a plan that are left, and what is known about them while they run.

    out: runs folder, in which measured times are looked up.
    """

    def __init__(self, cells: Sequence[Cell], commands: Sequence[Command], out: Path) -> None:
        self.cells, self.commands = cells, commands
        self.console = Console()
        self._estimator, self._times = Estimator(out), CommandTimes(out)
        self._resources: dict[str, Resources] = {}
        self._settled: dict[str, Cell] = {}  # cells whose checkpoint was made in this run, by name
        self._reported: set[Path] = set()  # folders of the folds whose number was printed
        self._graph: Graph[Stage]

    def run(self, engine: Engine, settings: Mapping[str, object]) -> int:
        """Run what is not done, with a live table; return the number of stages that failed or could not start."""
        stages: list[Stage] = [*self.commands, *trainings_to_run(self.cells)]
        self._say_what_is_done(len(stages))
        if not stages:
            return 0
        self._graph = Graph(stages, self._seconds)
        with Board(self.console, len(stages)) as board:
            work = Work(
                graph=self._graph,
                run=run_stage,
                log_file=lambda stage: stage.log_file,
                resources=lambda stage: self._resources[stage.name],
                busy=lambda stage: locks.is_held(stage.folder),
                watch=board.watch,
            )
            for stage, reason in engine(work, settings):
                lines = self._report(stage) if reason is None else []
                failed = not lines
                board.end(lines or [_failure(stage, reason or "it left no results")], failed)
                for dropped in self._graph.end(stage, failed=failed):
                    board.end([f"{dropped.name} not started: it needs {stage.name}"], True)
                if isinstance(stage, Command) and not failed:
                    for line in self._settle_dependents():
                        board.end([line], False)
        if board.failed:
            self.console.print(
                f"{board.failed} of {len(stages)} stages failed; run the same command again to retry them"
            )
        return board.failed

    def _say_what_is_done(self, left: int) -> None:
        done = sum(all(finished(fold) is not None for fold in cell.folds) for cell in self.cells)
        if done:
            self.console.print(f"{done} of {len(self.cells)} cells are done; {left} stages to run")
        _, staying = stale_results(self.cells)
        if staying:
            self.console.print(
                f"{len(staying)} results are of other code or versions. They stay in the report; --rerun-stale computes"
                " them again, and --dry-run lists them",
                soft_wrap=True,
            )

    def _seconds(self, stage: Stage) -> float | None:
        """Return the expected seconds of a stage, and note what it needs."""
        if isinstance(stage, Command):
            self._resources[stage.name] = stage.resources
            return self._times(stage)[0]
        estimate = self._estimator(stage)
        on_gpu = stage.cell.device == "cuda"
        self._resources[stage.name] = Resources(memory=estimate.memory_bytes, gpus=int(on_gpu))
        return estimate.seconds

    def _settle_dependents(self) -> list[str]:
        """Give the trainings that have just become ready their checkpoint; return a line for each that is done."""
        lines = []
        for stage in self._graph.ready():
            if isinstance(stage, Command) or not stage.cell.is_open:
                continue
            name = stage.cell.name
            if name not in self._settled:
                self._settled[name] = stage.cell.with_checkpoint()
                settle([self._settled[name]])
                write_mean(self._settled[name])
            now = next(each for each in self._settled[name].trainings if each.name == stage.name)
            self._graph.replace(stage, now)
            if finished(now.fold) is not None:
                self._graph.start(now)
                self._graph.end(now, failed=False)
                lines.append(f"{now.name}: done before, with the same checkpoint")
        return lines

    def _report(self, stage: Stage) -> list[str]:
        """Return lines about a stage that ended, and about its fold once it is done; empty if it left no results."""
        if isinstance(stage, Command):
            return [f"{stage.name}: {', '.join(map(str, stage.outputs))}"] if is_done(stage) else []
        fold, record = stage.fold, trained(stage)
        lines = []
        if record is not None and stage.tried_rate is not None:
            dev = (
                "the dev score never improved"
                if record["dev_percent"] is None
                else f"dev {record['dev_percent']:.2f} %"
            )
            lines.append(f"{stage.name}: {dev} ({record['seconds']:.0f} s)")
        if fold.folder not in self._reported and (line := _number(fold)) is not None:
            self._reported.add(fold.folder)
            lines.append(line)
        return lines


def _failure(stage: Stage, reason: str) -> str:
    return f"{stage.name} failed: {reason} (see {stage.log_file})"


def _number(fold: Fold) -> str | None:
    """Return a line with the fold's number; None if it is not done."""
    results = finished(fold)
    if results is None:
        return None
    chosen = f", learning rate {results['learning_rate']:g} chosen on dev" if fold.cell.learning_rates else ""
    seconds = sum(results["seconds"].values())
    return f"{fold.name}: {results['metric']} {results['value_percent']:.2f} % ({seconds:.0f} s){chosen}"
