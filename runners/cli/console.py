"""What `superbit --quiet` and `superbit --verbose` change."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import sys
from importlib.metadata import version

from upstreams.errors import UserError

PACKAGES = ("upstreams", "pretrain", "runners")
_log = logging.getLogger(__name__)


class _Lines(logging.Handler):
    """Messages on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message to what sys.stderr is now: a training's log file, for example."""
        line = self.format(record)
        bars = sys.modules.get("tqdm")
        if bars is None:
            print(line, file=sys.stderr, flush=True)
        else:
            bars.tqdm.write(line, file=sys.stderr)


def verbosity(quiet: bool, verbose: bool) -> None:
    """Choose the messages of this process and of those that it starts. Raises UserError when both are asked for.

    quiet: warnings and results only, no progress bars. verbose: debug messages too.
    """
    if quiet and verbose:
        raise UserError("--quiet and --verbose exclude each other: leave one out")
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, here and in child processes
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbose else "%(message)s"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    _log.debug("superbit %s, Python %s", version("superbit"), platform.python_version())
    _log.debug("command: %s", shlex.join(sys.argv))


def show_tracebacks() -> bool:
    """True if --verbose was given."""
    return logging.getLogger("runners").isEnabledFor(logging.DEBUG)
