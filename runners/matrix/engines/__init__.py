"""Engines run many stages: in processes of this machine, on Ray, or on Slurm."""

from __future__ import annotations

from runners.matrix.engines import local, ray, slurm
from runners.matrix.engines.work import Engine
from upstreams.errors import UserError, nearest

ENGINES: dict[str, Engine] = {"local": local.run, "ray": ray.run, "slurm": slurm.run}


def engine(name: str) -> Engine:
    """Return the engine; raise UserError for an unknown name. An engine imports its packages when it runs."""
    if name not in ENGINES:
        raise UserError(f"there is no engine {name!r}; {nearest(name, ENGINES)}")
    return ENGINES[name]
