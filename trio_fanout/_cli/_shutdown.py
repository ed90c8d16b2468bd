"""Winding a run down, in two steps: start nothing more, and end what runs. And suspending it."""

from __future__ import annotations

import enum
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ._programs import KILL_AFTER, stopped_children
from ._stdio import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    import trio_fanout as fanout

    from ._items import Job
    from ._programs import Program

LOOK_FOR_STOPPED: Final = 0.5
"""Seconds between two looks for programs that have been stopped."""

REPORT: Final = [getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name)]
"""The signals that ask what runs."""

END: Final = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
"""The signals that end what runs, as a second SIGINT does."""


class Cause(enum.Enum):
    """Why a program that has not ended by itself is ended."""

    TIMEOUT = enum.auto()
    SHUTDOWN = enum.auto()  # with all others
    TERMINAL = enum.auto()  # it wants to use the terminal, which stops it


@attrs.define(eq=False)
class Running:
    """A program that runs."""

    job: Job
    program: Program
    scope: trio.CancelScope
    began: float = attrs.field(factory=trio.current_time)
    cause: Cause = Cause.TIMEOUT

    def end(self, cause: Cause) -> None:
        """End it, if it is not being ended already."""
        if not self.scope.cancel_called:
            self.cause = cause
            self.scope.cancel()


class Shutdown:
    """How far the run has been wound down, and what it would end."""

    def __init__(self) -> None:
        self.stopped = False  # nothing more is started
        self.interrupted = False  # by a signal
        self.ended: Final = trio.Event()  # by a signal, and what ran with it
        self.running: Final[set[Running]] = set()
        self.printing: Final = trio.CancelScope()
        """Around all that prints results and messages: cancelled if their reader has stopped."""
        self._results: fanout.ResultChannel[Any, Any] | None = None
        self._waiting: set[trio.CancelScope] = set()

    @contextmanager
    def waiting(self) -> Generator[trio.CancelScope, None, None]:
        """A block that waits to start something: left when nothing more is to be started."""
        with trio.CancelScope() as scope:
            if self.stopped:
                scope.cancel()
            self._waiting.add(scope)
            try:
                yield scope
            finally:
                self._waiting.remove(scope)

    def wind_down(self, results: fanout.ResultChannel[Any, Any]) -> None:
        """Stop this stream when all is stopped."""
        self._results = results
        if self.stopped:
            results.stop()

    def stop(self) -> None:
        """Start nothing more."""
        self.stopped = True
        if self._results is not None:
            self._results.stop()
        for scope in self._waiting:
            scope.cancel()

    def end(self) -> None:
        """Start nothing more, and end what runs."""
        self.stop()
        for running in self.running:
            running.end(Cause.SHUTDOWN)

    async def obey(self, signals: AsyncIterator[int], say: Callable[[str], None]) -> None:
        """Suspend at SIGTSTP, stop at the first SIGINT; end at the second, and at any other signal."""
        async for number in signals:
            if number == signal.SIGTSTP:
                self._suspend()
            elif number in REPORT:
                say(self._report())
            elif number == signal.SIGINT and not self.interrupted:
                self.interrupted = True
                self.stop()
                if self.running:
                    say(f"waiting for what runs ({len(self.running)}); Ctrl-C again to end it")
            else:
                self.interrupted = True
                self.ended.set()
                self.end()
                # Programs have this long to end. A reader of the results that is stopped must not hold this up.
                self.printing.deadline = trio.current_time() + KILL_AFTER + 1

    async def watch_for_stopped(self) -> None:
        """End the programs that want to use the terminal, until cancelled.

        The terminal belongs to this process's group: reading it, or changing its modes, stops a program of another
        group, and nothing would continue it. Other stop signals are sent on purpose, and the sender will continue the
        program.
        """
        while True:
            await trio.sleep(LOOK_FOR_STOPPED)
            for pid, number in stopped_children():
                if number in (signal.SIGTTIN, signal.SIGTTOU):
                    for running in self.running:
                        if running.program.pid == pid:
                            running.end(Cause.TERMINAL)

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z in a terminal asks for, until the shell has this process continue."""
        for running in self.running:
            running.program.signal(signal.SIGSTOP)
        began = trio.current_time()
        os.kill(os.getpid(), signal.SIGSTOP)
        for running in self.running:
            running.scope.deadline += trio.current_time() - began
            running.program.signal(signal.SIGCONT)

    def _report(self) -> str:
        now = trio.current_time()
        lines = [
            f"{shown_job(running.job)} has run for {now - running.began:.1f} s, process {running.program.pid}"
            for running in sorted(self.running, key=lambda running: running.began)
        ]
        return "\n  ".join([f"{len(lines)} running", *lines])


def shown_job(job: Job) -> str:
    """A job as messages show it."""
    first = f"item {job[0].index} ({shown(job[0].text)})"
    return first if len(job) == 1 else f"{first} and {len(job) - 1} more"


def signals_to_obey() -> list[int]:
    """The signals that wind a run down. One that is ignored stays so: under `nohup`, or in a script's background."""
    signals = [signal.SIGINT, signal.SIGTSTP, *END, *REPORT]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
