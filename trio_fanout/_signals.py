"""The names of signals."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """What messages call a signal: ``SIGTERM``, or ``signal 40`` for a real-time signal, which has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
