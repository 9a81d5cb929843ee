"""SIGINT (Ctrl-C) and SIGTERM as a request to stop after the current micro-batch."""

from __future__ import annotations

import signal


class StopSignal:
    """Context manager that records SIGINT and SIGTERM instead of letting them end the process.

    The training loop polls `requested`, saves its state, and raises `exception`.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal

    @property
    def requested(self) -> bool:
        """True if a signal has arrived."""
        return self.received != 0

    @property
    def exception(self) -> BaseException:
        """What ends the process with the signal's usual exit code: 130 after SIGINT, 143 after SIGTERM."""
        return KeyboardInterrupt() if self.received == signal.SIGINT else SystemExit(128 + signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, *_: object) -> None:
        self.received = number
