"""How a run ends, and why: the one place that knows.

Whatever may end the run leaves a note here: a failure, a signal, input that is wrong, results that cannot be kept, a
reader that has gone. From the notes follow what happens to running programs, the last words, and the exit code. There
are two steps: start nothing more, and end what runs.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ._items import COUNTING, shown_job
from ._programs import KILL_AFTER
from ._stdio import UsageError
from ._system import reap_orphans, stopped_children

if TYPE_CHECKING:
    from collections.abc import Generator

    import trio_fanout as fanout

    from ._items import Items, Job
    from ._options import Options
    from ._output import Output
    from ._programs import Program
    from ._stdio import FatalError

LOOK_AT_CHILDREN: Final = 0.5  # seconds between two looks for programs that have been stopped, and for orphans
LOOK_AT_READER: Final = 0.5  # seconds between two looks whether the reader of results still reads
MOMENT: Final = 1.0  # seconds that the reader of results has when somebody who asked twice waits for nothing else

REPORT: Final = [getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name)]
"""The signals that ask what is running."""

TERMINATE: Final = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2]
"""The signals that end running programs, as a second SIGINT does. Unhandled, they would leave the programs behind."""


@attrs.define(eq=False)
class Running:
    """A program that is running."""

    job: Job
    program: Program
    scope: trio.CancelScope  # cancelled to end it, or at its deadline
    began: float
    error: str | None  # why it has failed if it has been ended; None if it is ended with all others

    def end(self, error: str | None) -> None:
        """End it, if it is not being ended already."""
        if not self.scope.cancel_called:
            self.error = error
            self.scope.cancel()


class Deadline:
    """A deadline for any number of blocks, which may be moved while they run."""

    def __init__(self) -> None:
        self._at = math.inf
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def scope(self) -> Generator[trio.CancelScope, None, None]:
        """A block that is cancelled at the deadline."""
        with trio.CancelScope(deadline=self._at) as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)

    def bring_forward(self, at: float) -> None:
        """Move it to this time, if it is later."""
        self.move(min(self._at, at))

    def move(self, at: float) -> None:
        """Move it to this time."""
        self._at = at
        for scope in self._scopes:
            scope.deadline = self._at


@attrs.define
class Tally:
    """How far things are, counted in items."""

    finished: int = 0
    failed: int = 0  # of those that have finished
    failures: int = 0  # the programs that have failed for them: fewer where one runs for several items
    first_failure: tuple[Job, str] | None = None  # the one with the lowest index, and what went wrong
    items: Items | None = None  # until the input has been opened
    began: float = attrs.field(factory=time.monotonic)

    def total(self) -> int | None:
        """How many items there are to run, or None while that is unknown."""
        return None if self.items is None else self.items.total

    def finish(self, job: Job, error: str | None) -> None:
        """Count the items of a program that has finished, and failed if there is an error."""
        self.finished += len(job)
        if error is not None:
            self.failed += len(job)
            self.failures += 1
            if self.first_failure is None or job[0].index < self.first_failure[0][0].index:
                self.first_failure = job, error

    def account(self, rest: str) -> str:
        """How many items have succeeded and failed, and how many are the `rest`, if that is known."""
        total = self.total()
        left = "" if total is None else f", {max(total - self.finished, 0)} {rest}"
        return f"{self.finished - self.failed} done, {self.failed} failed{left}"


class End:
    """The notes about the end of a run, and what follows from them.

    Args:
        options: those of the command line.
        output: prints messages.
    """

    def __init__(self, options: Options, output: Output) -> None:
        self.tally: Final = Tally()
        self.running: Final[set[Running]] = set()
        self.started = False  # any program
        self.stopped = False  # nothing more is started
        self.terminated: Final = trio.Event()  # a signal has ended what was running
        self.signal: int | None = None  # the first one that asked for the end
        self.reader_has_gone = False  # that of the results: it has seen enough
        self.starting: Final = Deadline()  # for whatever waits to start something
        self.printing: Final = Deadline()  # for whatever prints results and messages: their reader may stand still
        self._output = output
        self._most: Final = options.max_failures
        self._prints: Final = options.output != "none"
        self.tells_each: Final = options.output != "json" and options.max_failures > 1
        """Whether each failure is worth a message: nothing else would show which items failed."""
        self._error: UsageError | FatalError | None = None
        self._failed_fast = False
        self._in_a_hurry = False
        self._results: fanout.ResultChannel[Any, Any] | None = None

    # The notes

    def finish(self, job: Job, error: str | None, *, hopeless: bool) -> None:
        """A program has finished, and failed if there is an error; where it is hopeless, all others would fail, too."""
        self.tally.finish(job, error)
        if error is not None:
            self._failed_fast |= self.tally.failures >= self._most and not hopeless
            if self._failed_fast or hopeless:
                self._end()

    def wrong(self, error: UsageError | FatalError) -> None:
        """The input goes no further. The items before it have nothing to do with it."""
        self._error = self._error or error
        if self._most == 1:
            self._end()

    def give_up(self, error: UsageError | FatalError) -> None:
        """Going on is not possible, or not wanted: there is no room for results, say."""
        self._stop()
        self.wrong(error)

    def note_signal(self, number: int) -> None:
        """A signal asks for the end: the first SIGINT to start nothing more, any other to end what is running."""
        is_first = self.signal is None
        self.signal = self.signal or number
        if is_first and number == signal.SIGINT:
            self._stop()
            if count := len(self.running):
                what, them = ("programs", "them") if count > 1 else ("program", "it")
                self._output.say_if_ready(f"waiting for {count} running {what}; press Ctrl-C again to terminate {them}")
            return
        self.terminated.set()
        self._end()
        if is_first:
            self.printing.bring_forward(self._patience())
        else:
            self._in_a_hurry = True
            self._hurry()

    # What follows from them

    def _stop(self) -> None:
        """Start nothing more."""
        self.stopped = True
        self.starting.bring_forward(-math.inf)
        if self._results is not None:
            self._results.stop()

    def _end(self) -> None:
        """Start nothing more, and end what is running."""
        self._stop()
        for running in self.running:
            running.end(None)

    def _patience(self) -> float:
        # Programs have that long to end. A reader who stands still must not hold this up for longer.
        return trio.current_time() + KILL_AFTER + 1

    def _hurry(self) -> None:
        # Who has asked twice waits for programs, and for no reader.
        if self._in_a_hurry and not self.running:
            self.printing.bring_forward(trio.current_time() + MOMENT)

    async def watch_reader(self) -> None:
        """After a signal that ends programs, wait for a reader of results as long as it reads, until cancelled."""
        await self.terminated.wait()
        while not self._in_a_hurry:
            written = self._output.written
            await trio.sleep(LOOK_AT_READER)
            if self._output.written > written and not self._in_a_hurry:
                self.printing.move(self._patience())

    def wind_down(self, results: fanout.ResultChannel[Any, Any]) -> None:
        """Stop this stream when nothing more is started."""
        self._results = results
        if self.stopped:
            results.stop()

    @contextmanager
    def watched(self, running: Running) -> Generator[None, None, None]:
        """A block in which a program is running."""
        self.started = True
        self.running.add(running)
        try:
            yield
        finally:
            self.running.remove(running)
            self._hurry()

    @property
    def exit_code(self) -> int:
        """That of the command."""
        if self.signal is not None:
            return 128 + self.signal
        if isinstance(self._error, UsageError):
            return 2
        return 1 if self.tally.failed or self._error is not None or self.reader_has_gone else 0

    async def say_last_words(self) -> None:
        """Say what was skipped, what failed, what went wrong, and what was not run."""
        if self.reader_has_gone and self.signal is None:
            return
        items = self.tally.items
        early = items is not None and await self._is_early(items)
        words: list[str] = []
        if items is not None and items.skipped:
            rest = "; only the results of the others are printed" if self._prints else ""
            words.append(f"skipped what the log says has succeeded ({items.skipped}){rest}")
        if self.tally.first_failure is not None:
            words.append(self._failures(*self.tally.first_failure))
        if self._error is not None:
            words.append(str(self._error))
        if early:
            words.append(self._not_run())
        with self.printing.scope():
            for word in words:
                await self._output.say(word)

    async def _is_early(self, items: Items) -> bool:
        """Whether the run has ended before everything was run."""
        if not self.stopped and self._error is None:
            return False
        if isinstance(self._error, UsageError) and not self.started and not self.tally.finished:
            return False  # it has not begun
        await items.settle()
        return items.total is None or self.tally.finished < items.total

    def _failures(self, job: Job, error: str) -> str:
        count = f"{self.tally.failed} of {self.tally.finished} items failed"
        if self.tally.failures > 1:
            return f"{count}; first: {shown_job(job)}: {error}"
        return count if self.tells_each else f"{shown_job(job)} failed: {error}"

    def _not_run(self) -> str:
        account = self.tally.account("not run")
        if self.tally.total() is None:
            account += "; the rest of the input was not run"
        hint = self._failed_fast and self.signal is None and self._error is None
        return f"{account} (-k goes on after a failure)" if hint else account

    # Signals and other news of processes

    async def obey(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC114
        """Act on signals, until cancelled. One that is ignored stays so: under `nohup`, or in a script's background."""
        wanted = [signal.SIGINT, signal.SIGTSTP, *TERMINATE, *REPORT]
        wanted = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        if not wanted:
            task_status.started()
            return
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async with trio.open_nursery() as reports:
                async for number in signals:
                    if number == signal.SIGTSTP:
                        self._suspend()
                    elif number in REPORT:
                        reports.start_soon(self._report)  # it may count first, and another signal must not wait
                    else:
                        self.note_signal(number)

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z in a terminal asks for, until the shell has this process continue.

        Where no shell could do so (under ``ssh -t``, say), the system ignores this signal, but not a SIGSTOP.
        """
        for running in self.running:
            running.program.signal(signal.SIGSTOP)
        began = trio.current_time()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        for running in self.running:
            running.scope.deadline += trio.current_time() - began
            running.program.signal(signal.SIGCONT)

    async def _report(self) -> None:
        account = ""
        if self.tally.items is not None:
            with trio.move_on_after(COUNTING):
                await self.tally.items.count()
            account = f"; {self.tally.account('left')}"
        now = trio.current_time()
        lines = [
            f"{shown_job(running.job)} has run for {now - running.began:.1f} s, process {running.program.pid}"
            for running in sorted(self.running, key=lambda running: running.began)
        ]
        await self._output.say("\n  ".join([f"{len(lines)} running{account}", *lines]))

    async def watch_children(self) -> None:
        """Reap orphans, and end programs that want to use the terminal, until cancelled.

        The terminal belongs to this process's group: reading it, or changing its modes, stops a program of another
        group, and nothing would continue it. Other stop signals are sent on purpose, and the sender will continue the
        program.
        """
        while True:
            await trio.sleep(LOOK_AT_CHILDREN)
            reap_orphans({running.program.pid for running in self.running})
            for pid, number in stopped_children():
                if number in (signal.SIGTTIN, signal.SIGTTOU):
                    for running in self.running:
                        if running.program.pid == pid:
                            running.end("it wants to use the terminal, which stops it")
