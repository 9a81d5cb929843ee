"""Engines run many trainings: in processes of this machine, on Ray, or on Slurm.

An engine takes `Work` and its own settings, and yields each training as it ends, with the reason if it failed, else
None. A training leaves its results on disk; with several machines, in a folder that all of them see. An engine only
respects the machine's memory and GPUs; on a cluster, the cluster's scheduler decides what runs where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

TrainingT = TypeVar("TrainingT")


@dataclass(frozen=True, kw_only=True)
class Work(Generic[TrainingT]):
    """Trainings to run, and what an engine must know about them."""

    trainings: Sequence[TrainingT]
    run: Callable[[TrainingT], object]
    log_file: Callable[[TrainingT], Path]
    memory: Callable[[TrainingT], int]  # expected bytes
    busy: Callable[[TrainingT], bool]  # True if another runner works on it: it is started later
    on_gpu: bool  # one GPU for each training
    watch: Callable[[list[TrainingT]], None]  # called with the started trainings, at least once a second


class Engine(Protocol):
    """Signature of an engine. settings: those of the matrix file; for `local` the number of jobs."""

    def __call__(self, work: Work[Any], settings: Mapping[str, Any]) -> Iterator[tuple[Any, str | None]]: ...
