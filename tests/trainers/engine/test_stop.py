"""Signals that ask a run to end."""

import signal

import pytest

from trainers.engine import stop


def test_signals(monkeypatch):
    """SIGTERM never hurries; a second Ctrl-C does, unless it is the same one."""
    before = signal.getsignal(signal.SIGTERM)
    with stop.Stop(speaks=False) as asked:
        assert asked.asked is None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        assert asked.asked is not None
        monkeypatch.setattr(stop, "PATIENCE", -1.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.Stop(speaks=False) as asked:
            signal.raise_signal(signal.SIGINT)
        assert asked.asked is None
    finally:
        signal.signal(signal.SIGINT, before)
