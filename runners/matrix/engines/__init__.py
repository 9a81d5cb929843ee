"""Running many cells: in processes of this machine, on Ray, or on Slurm.

An engine takes `Work` and its own settings, and yields every cell as it ends with the reason why it failed, or None.
What a cell produces, it leaves on disk: on several machines, in a folder that all of them see. None of the engines
decides what runs where beyond what a machine's memory and GPUs allow: clusters have schedulers for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from upstreams.errors import UserError, nearest

CellT = TypeVar("CellT")

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Work(Generic[CellT]):
    """What is to be run, and what an engine must know of it."""

    cells: Sequence[CellT]
    run: Callable[[CellT], object]
    log_file: Callable[[CellT], Path]
    memory: Callable[[CellT], int]  # bytes that a cell is expected to need
    busy: Callable[[CellT], bool]  # whether another runner is at work on it: its turn comes later
    on_gpu: bool  # a GPU for each cell
    watch: Callable[[list[CellT]], None]  # gets the cells under way, at least once a second


class Engine(Protocol):
    """How an engine is called; settings as the matrix file gives them, for `local` the number of jobs."""

    def __call__(self, work: Work[Any], settings: Mapping[str, Any]) -> Iterator[tuple[Any, str | None]]: ...


def engine(name: str) -> Engine:
    """The engine of that name; raises UserError for an unknown one. What it needs is imported when it runs."""
    from runners.matrix.engines import local, ray, slurm

    engines: dict[str, Engine] = {"local": local.run, "ray": ray.run, "slurm": slurm.run}
    if name not in engines:
        raise UserError(f"there is no engine {name!r}; {nearest(name, ENGINES)}")
    return engines[name]
