"""Winding a run down, in two steps: start nothing more, and end what runs. And suspending it."""

from __future__ import annotations

import math
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from ._programs import KILL_AFTER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from contextlib import AbstractContextManager

    import trio_fanout as fanout

    from ._programs import Program

T = TypeVar("T")


class Shutdown:
    """How far the run has been wound down."""

    def __init__(self) -> None:
        self.stopped = False  # nothing more is started
        self.interrupted = False  # by a signal
        self._results: fanout.ResultChannel[Any, Any] | None = None
        self.printing: Final = trio.CancelScope()
        """Around all that uses the results: for when nobody takes them any more."""
        self._waiting: Final[set[trio.CancelScope]] = set()
        self._running: Final[set[trio.CancelScope]] = set()
        self._programs: Final[set[Program]] = set()

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """A block that waits to start something: left when nothing more is to be started."""
        with trio.CancelScope() as scope, _member(scope, self._waiting):
            yield

    @contextmanager
    def running(self, timeout: float | None) -> Generator[trio.CancelScope, None, None]:
        """A cancel scope for something that runs: cancelled after `timeout` seconds, or when all is ended.

        In the second case its deadline is infinite.
        """
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        scope = trio.CancelScope(deadline=deadline)
        with _member(scope, self._running):
            yield scope

    def suspending(self, program: Program) -> AbstractContextManager[None]:
        """A block in which a program is stopped and continued along with this process."""
        return _member(program, self._programs)

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
        for scope in self._running:
            if not scope.cancel_called:
                scope.deadline = math.inf  # so that it can be told from one whose time is up
                scope.cancel()

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z in a terminal asks for, until the shell has this process continue."""
        for program in self._programs:
            program.signal(signal.SIGSTOP)
        began = trio.current_time()
        os.kill(os.getpid(), signal.SIGSTOP)
        for scope in self._running:
            scope.deadline += trio.current_time() - began
        for program in self._programs:
            program.signal(signal.SIGCONT)

    async def obey(self, signals: AsyncIterator[int], say: Callable[[str], None]) -> None:
        """Suspend at SIGTSTP, stop at the first SIGINT; end at the second, and at any other signal."""
        async for number in signals:
            if number == signal.SIGTSTP:
                self._suspend()
            elif number == signal.SIGINT and not self.interrupted:
                self.interrupted = True
                self.stop()
                if self._running:
                    say(f"waiting for what runs ({len(self._running)}); Ctrl-C again to end it")
            else:
                self.interrupted = True
                self.end()
                # Programs have this long to end. A reader of the results that is stopped must not hold this up.
                self.printing.deadline = trio.current_time() + KILL_AFTER + 1


@contextmanager
def _member(thing: T, group: set[T]) -> Generator[None, None, None]:
    group.add(thing)
    try:
        yield
    finally:
        group.remove(thing)


def signals_to_obey() -> list[signal.Signals]:
    """The signals that wind a run down. One that is ignored stays so: under `nohup`, or in a script's background."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
