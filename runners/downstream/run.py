"""`superbit downstream`: s3prl's run_downstream with this project's upstreams and tasks, checked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runners.downstream.arguments import parse


def main(argv: Sequence[str], on_step: Callable[[int], None] | None = None) -> dict[str, float] | None:
    """Run one experiment as `superbit downstream ARGV` does; one process may call it many times.

    `on_step` is called with the number of each completed training step. With -m evaluate, returns the metrics that
    s3prl prints by their names, unrounded. Raises UserError for bad input, before anything is computed or written if
    arguments, configuration, lists or file names show it.
    """
    options = parse(argv)

    # These import torch and s3prl, which --help and an error in the flags do not wait for.
    from runners.downstream.experiment import run
    from runners.downstream.settings import resolve

    return run(resolve(options), on_step)
