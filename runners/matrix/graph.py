"""The order of stages: each starts when everything that it needs is done, the longest remaining path first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Stage(Protocol):
    """Something to run, under a name, after other stages."""

    @property
    def name(self) -> str:
        """Unique name, also for messages."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that must be done before; those that are in no graph are done already."""


StageT = TypeVar("StageT", bound=Stage)


class Graph(Generic[StageT]):
    """Stages that are left to run.

    seconds: expected time of a stage, or None if it is not known. Of two stages that could start, the one goes first
    whose time, together with the longest chain of stages that wait for it, is the longest; of equal ones the first.
    """

    def __init__(self, stages: Sequence[StageT], seconds: Callable[[StageT], float | None] = lambda stage: None):
        self._dependents: dict[str, list[StageT]] = {stage.name: [] for stage in stages}
        for stage in stages:
            for needed in stage.needs:
                self._dependents.setdefault(needed, []).append(stage)
        lengths: dict[str, float] = {}

        def length(stage: StageT) -> float:
            if stage.name not in lengths:
                after = max((length(other) for other in self._dependents[stage.name]), default=0.0)
                lengths[stage.name] = (seconds(stage) or 0.0) + after
            return lengths[stage.name]

        self._open = {stage.name for stage in stages}  # neither ended nor dropped
        self._waiting = sorted(stages, key=lambda stage: -length(stage))

    def __bool__(self) -> bool:
        """True if a stage has not been started."""
        return bool(self._waiting)

    def ready(self) -> list[StageT]:
        """Return the stages that may start now, in the order in which they should."""
        return [stage for stage in self._waiting if not any(name in self._open for name in stage.needs)]

    def start(self, stage: StageT) -> None:
        """Take a stage out of those that wait."""
        self._waiting.remove(stage)

    def replace(self, stage: StageT, by: StageT) -> None:
        """Put `by`, of the same name, in the place of a stage that waits."""
        self._waiting[self._waiting.index(stage)] = by

    def end(self, stage: StageT, *, failed: bool) -> list[StageT]:
        """Record that a started stage has ended; return the stages that can no longer run, because it failed."""
        self._open.discard(stage.name)
        return self._drop(stage.name) if failed else []

    def _drop(self, name: str) -> list[StageT]:
        dropped = [stage for stage in self._waiting if name in stage.needs]
        for stage in dropped:
            self._waiting.remove(stage)
            self._open.discard(stage.name)
        return dropped + [later for stage in dropped for later in self._drop(stage.name)]
