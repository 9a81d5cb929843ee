"""Messages of s3prl that its users cannot act on: they are not shown."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Hide s3prl's warnings inside the block: importing its hub names every optional package that is not installed."""
    logger = logging.getLogger("s3prl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def hide_deprecations() -> None:
    """Hide warnings about deprecated code inside s3prl.

    torch deprecates a call in every step of s3prl's training loop, and Python shows a warning again each time that
    any code changes the warning filters: one training repeats it dozens of times.
    """
    for category in (FutureWarning, DeprecationWarning, SyntaxWarning):
        # A module's name, or the path of a source file that is being compiled.
        warnings.filterwarnings("ignore", category=category, module=r"(.*[/\\])?s3prl[./\\]")
