"""Running the programs: one for each job, with its time limit, its attempts, its record, and what its failure does.

Of the library's policies and time limits this uses none. These cancel an item at once; to end a program takes a grace
period, in which it may still print, and its result is wanted. So fail-fast is done by hand here.
"""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_fanout as fanout

from .._signals import signal_name
from ._results import Result
from ._shutdown import END, Cause, Running, shown_job
from ._stdio import reason, shown
from ._template import FOR_A_SHELL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._inputs import Input
    from ._items import Job
    from ._log import Log
    from ._output import Output
    from ._parser import Options
    from ._programs import Launcher
    from ._progress import Tally
    from ._shutdown import Shutdown
    from ._spool import Kept

WAITING: Final = 256
"""How many items may wait for their next attempt, on top of those that run."""

LONGEST_PAUSE: Final = 60.0
"""Seconds that an item waits at most, give or take a quarter, for its next attempt."""

MOMENT: Final = 0.1
"""Seconds in which a signal that is sent to all processes of a session or a service reaches all of them."""


class Runner:
    """Runs the program of one job, and says what came of it."""

    def __init__(
        self,
        options: Options,
        source: Input,
        shutdown: Shutdown,
        launcher: Launcher,
        log: Log | None,
        tally: Tally,
        output: Output,
    ) -> None:
        self._source = source
        self._shutdown = shutdown
        self._launcher = launcher
        self._log = log
        self._tally = tally
        self._captures = options.output != "none"
        self._batch = options.batch is not None
        self._timeout: float | None = options.timeout
        self._fail_fast: bool = options.fail_fast
        self._wait_for_turn: Callable[[], Awaitable[None]] | None = (
            None if options.rate is None else fanout.throttle(trio.lowlevel.checkpoint, options.rate)
        )
        # Where results are not printed as JSON, nothing else would tell which items failed.
        self._tell = None if options.output == "json" or options.fail_fast else output.say
        self._started_any = False
        self._retries: int | None = options.retries
        self.limit: int = options.parallel
        """How many jobs are in progress at once."""
        if self._retries:
            # An item that waits for its next attempt is in progress, but holds no place.
            self.limit += WAITING
            self._attempt: Callable[[Job], Awaitable[Result | None]] = fanout.cap(self._run_once, options.parallel)
        else:
            self._attempt = self._run_once

    async def run(self, job: Job) -> Result | None:
        """Run the program of a job. None if it was not started, or ended with the whole run."""
        result = await self._attempt(job)
        if result is not None and self._retries is not None:
            result = await self._retry(job, result, self._retries)
        if result is None:
            return None  # the loop that calls this sees to checkpoints
        self._tally.done += len(job)
        if result.error is not None:
            self._tally.add_failure(job, result.error)
            # A program that does not exist fails for every item.
            if self._fail_fast or (not result.found and not self._started_any and self._source.has_one_program):
                self._shutdown.end()
            if self._tell is not None:
                await self._tell(f"{shown_job(job)} failed: {result.error}")
        if self._log is not None:
            await self._log.append(result.json_line())
        return result

    def last_words(self) -> str:
        """The last message of a run with failures: how many there were, and the first of them."""
        assert self._tally.first_failure is not None
        job, error = self._tally.first_failure
        what = shown_job(job)
        count = f"{self._tally.failed} of {self._tally.done} items failed"
        if self._tally.failures > 1:
            return f"{count}; first: {what}: {error}"
        return f"{what} failed: {error}" if self._tell is None else count

    async def _retry(self, job: Job, result: Result, retries: int) -> Result | None:
        """Start a program that failed again, until it succeeds or has failed often enough."""
        attempts = 1
        while result.error is not None and attempts <= retries and not result.hopeless:
            with self._shutdown.waiting():
                await trio.sleep(_pause_after(attempts))
            again = None if self._shutdown.stopped else await self._attempt(job)
            if again is None:
                # After an interrupt, the failed attempt is the result. After the failure of another item, this one has
                # no result: the next attempt might have succeeded.
                if not self._shutdown.interrupted:
                    result.close()
                    return None
                break
            result.close()
            result = again
            attempts += 1
        return attrs.evolve(result, attempts=attempts)

    async def _run_once(self, job: Job) -> Result | None:
        if self._wait_for_turn is not None:
            with self._shutdown.waiting():
                await self._wait_for_turn()
        if self._shutdown.stopped:
            return None
        started, began = time.time(), trio.current_time()

        def result(exit_code: int | None, outputs: list[Kept], error: str | None, **start: bool) -> Result:
            seconds = trio.current_time() - began
            words = self._source.program(job)
            return Result(job, words, exit_code, outputs, started, seconds, error, batch=self._batch, **start)

        try:
            with self._source.stdin(job) as stdin:
                program = self._launcher.start(self._source.words(job), stdin)
        except (OSError, ValueError) as exc:
            found = not isinstance(exc, OSError) or exc.errno not in _NO_SUCH_PROGRAM
            hopeless = not isinstance(exc, OSError) or exc.errno not in _NO_ROOM
            return result(None, self._launcher.outputs(), _start_error(exc), found=found, hopeless=hopeless)
        self._started_any = True
        running = Running(job, program, trio.CancelScope(), began)
        if self._timeout is not None:
            running.scope.deadline = began + self._timeout
        self._shutdown.running.add(running)
        try:
            over = await program.run(running.scope)
        finally:
            self._shutdown.running.remove(running)
        if over:
            if program.exit_code == -signal.SIGPIPE and not self._captures and _output_is_closed():
                raise BrokenPipeError
            if program.exit_code is not None and -program.exit_code in END:
                # A service manager sends SIGTERM to all processes at once. Then the program has not failed by itself,
                # and the signal is about to arrive here, too.
                with trio.move_on_after(MOMENT):
                    await self._shutdown.ended.wait()
                    program.close()
                    return None
            return result(program.exit_code, program.outputs, _exit_error(program.exit_code))
        if running.cause is Cause.SHUTDOWN:
            program.close()
            return None
        if running.cause is Cause.TERMINAL:
            return result(program.exit_code, program.outputs, "it wants to use the terminal, which stops it")
        return result(program.exit_code, program.outputs, f"timed out after {self._timeout:g} seconds")


def _pause_after(attempts: int) -> float:
    """Seconds from the failure of so many attempts to the next one: 1, 2, 4 and so on, and not the same for all."""
    return min(2.0 ** min(attempts - 1, 10), LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311  # no secret


_NO_ROOM: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

_NO_SUCH_PROGRAM: Final = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC)


def _start_error(exc: OSError | ValueError) -> str:
    if not isinstance(exc, OSError) or exc.filename is None:
        return f"cannot start: {reason(exc)}"
    name = os.fsdecode(exc.filename)
    error = f"cannot start {shown(name)}: {reason(exc)}"
    if exc.errno == errno.ENOENT and not (FOR_A_SHELL | {" "}).isdisjoint(name):
        error += " (no shell is involved: to use one, run sh -c 'COMMAND', where $0 is the item)"
    return error


def _exit_error(exit_code: int | None) -> str | None:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal_name(-exit_code)}"
    return f"exit code {exit_code}" if exit_code else None


def _output_is_closed() -> bool:
    """Whether standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
