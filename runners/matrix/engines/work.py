"""Engines run many stages: in processes of this machine, on Ray, or on Slurm.

An engine takes `Work` and its own settings, and yields each stage as it ends, with the reason if it failed, else None.
Before it continues, the caller records the end in the graph. A stage leaves its results on disk; with several machines,
in a folder that all of them see. An engine only respects the machine's memory, cores and GPUs; on a cluster, the
cluster's scheduler decides what runs where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol

from runners.matrix.graph import Graph, StageT


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage needs from a machine."""

    memory: int  # expected bytes
    processes: int = 1  # each computes on one core
    gpus: int = 0
    alone: bool = False  # on this machine: nothing else runs beside it, as it measures time


@dataclass(frozen=True, kw_only=True)
class Work(Generic[StageT]):
    """Stages to run, and what an engine must know about them."""

    graph: Graph[StageT]
    run: Callable[[StageT], object]
    log_file: Callable[[StageT], Path]
    resources: Callable[[StageT], Resources]
    busy: Callable[[StageT], bool]  # True if another runner works on it: it is started later
    watch: Callable[[list[StageT]], None]  # called with the started stages, at least once a second


class Engine(Protocol):
    """Signature of an engine. settings: those of the matrix file; for `local` the number of jobs."""

    def __call__(self, work: Work[Any], settings: Mapping[str, Any]) -> Iterator[tuple[Any, str | None]]: ...
