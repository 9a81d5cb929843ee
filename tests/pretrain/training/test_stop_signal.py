"""SIGINT and SIGTERM as a request to stop."""

from __future__ import annotations

import signal

import pytest

from pretrain.training.stop_signal import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_recorded_and_the_previous_handlers_return(number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    if number == signal.SIGINT:
        assert isinstance(stop.exception, KeyboardInterrupt)
    else:
        assert isinstance(stop.exception, SystemExit) and stop.exception.code == 143
