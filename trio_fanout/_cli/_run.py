"""One run of the command, from the options to the exit code: a `stream` of a function that runs one program.

Of the library's policies and time limits this uses none. These cancel an item immediately. Ending a program takes a
grace period, in which it may still print, and its result is wanted. So fail-fast is done by hand here.
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import shlex
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

import trio_fanout as fanout

from .._signals import signal_name
from ._end import TERMINATE, End, Running
from ._items import Input, Items, Lines, shown_job
from ._json import Json
from ._log import History, Log
from ._output import Output, open_display
from ._programs import Launcher
from ._results import Result, Spool
from ._stdio import (
    STANDARD_INPUT,
    FatalError,
    UsageError,
    check_apart,
    in_thread,
    read_piece,
    reason,
    shown,
    temporary_place,
    write_all,
)
from ._words import WITH_A_SHELL, Batches, Commands, Template, is_for_a_shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from ._items import Job, Splitter
    from ._options import Options
    from ._programs import Program
    from ._results import Kept
    from ._words import Programs

AHEAD: Final = 256  # results that may wait for an earlier one to be printed, until nothing more is started
WAITING: Final = 256  # items that may wait for their next attempt, besides those that are running
LONGEST_PAUSE: Final = 60.0  # seconds that an item waits at most, give or take a quarter, for its next attempt
MOMENT: Final = 0.1  # seconds in which a signal to all processes of a session or a service reaches all of them


async def run(options: Options) -> int:
    """Do what the options say; returns the exit code."""
    # Programs whose output is not captured print to the terminal whenever they like. A display would erase that.
    is_shared = options.output == "none" and os.isatty(1)
    display = open_display(wanted=options.progress and not options.dry_run and not is_shared)
    output = Output(options.output, display, logs=options.log is not None)
    end = End(options, output)
    with ExitStack() as stack:
        async with trio.open_nursery() as helpers:
            await helpers.start(end.obey)
            try:
                await Run(options, end, output, stack).run(helpers)
            except (UsageError, FatalError) as exc:
                end.give_up(exc)
            except BrokenPipeError:
                end.reader_has_gone = True
            await end.say_last_words()
            helpers.cancel_scope.cancel()
    return end.exit_code


class Run:
    """What there is to run, and what is done for each job.

    Args:
        options: those of the command line.
        end: knows how the run ends.
        output: prints results and messages.
        stack: closes what is opened.
    """

    def __init__(self, options: Options, end: End, output: Output, stack: ExitStack) -> None:
        self._options = options
        self._end = end
        self._output = output
        self._stack = stack
        is_fan_out = options.command == "fan-out"
        self._programs: Programs = Commands(options.program) if is_fan_out else Template(options.program)
        self._log: Log | None = None
        self._stdin = os.devnull
        self._limit = options.parallel
        self._attempt: Callable[[Job], Awaitable[Result | None]] = self._run_once
        if options.retries:
            # An item that waits for its next attempt is in progress, but holds no place.
            self._limit += WAITING
            self._attempt = fanout.cap(self._run_once, options.parallel)
        self._wait_for_turn: Callable[[], Awaitable[None]] | None = None
        if options.rate is not None:
            self._wait_for_turn = fanout.throttle(trio.lowlevel.checkpoint, options.rate)

    async def run(self, helpers: trio.Nursery) -> None:
        """Do all of it.

        Raises:
            UsageError, FatalError: it could not be begun, or results can no longer be printed.
            BrokenPipeError: nobody reads them.
        """
        with self._end.starting.scope() as scope:  # opening a named pipe waits for its other end
            items = await self._open()
            jobs: AsyncIterable[Job] = items
            if isinstance(self._programs, Template) and self._options.batch is not None:
                jobs = Batches(items, self._programs, self._options.batch)
            if self._options.dry_run:
                await self._print_words(jobs)
                return
            self._end.tally.items = items
            if self._options.command == "fan-out":
                await self._copy_input()
        if not scope.cancelled_caught:
            await self._run(items, jobs, helpers)

    async def _run(self, items: Items, jobs: AsyncIterable[Job], helpers: trio.Nursery) -> None:
        if self._output.display is not None:
            helpers.start_soon(self._output.keep_drawing, self._end.tally)
            helpers.start_soon(items.count)
        captures = self._options.output != "none"
        spool = Spool() if captures else None
        if spool is not None:
            self._stack.callback(spool.close)
        self._launcher = self._stack.enter_context(Launcher(self._options.parallel, spool, self._stdin))
        helpers.start_soon(self._launcher.read_outputs)
        helpers.start_soon(self._end.watch_children)
        helpers.start_soon(self._end.watch_reader)
        ordered = captures and self._options.ordered
        with self._end.printing.scope():
            async with fanout.stream(self._run_job, jobs, limit=self._limit, ordered=ordered, buffer=AHEAD) as results:
                self._end.wind_down(results)
                async for _, _, result in results:
                    if result is not None:
                        if captures:
                            await self._output.show(result)
                        result.close()

    # What there is to run

    async def _open(self) -> Items:
        options = self._options
        fd = await self._open_input()
        source, output = ("the input", fd), ("standard output", 1)
        if options.command != "fan-out":  # which has read all of it before anything is written
            check_apart(source, output)
        history = None
        if options.log is not None:
            for other in (source, output, ("standard error", 2)):
                check_apart(("the log", options.log), other)
            history = History()
            if options.resume:
                await in_thread(history.read, options.log, self._programs.all)
            if not options.dry_run:
                self._log = await in_thread(Log, options.log)
                self._stack.callback(self._log.close)
        if isinstance(self._programs, Commands):
            return Items(self._programs.items, history, self._end.wrong)
        splitters: dict[str, Callable[[], Splitter]] = {"lines": Lines, "null": partial(Lines, b"\0"), "json": Json}
        name = STANDARD_INPUT if options.items is None else repr(options.items)
        return Items(Input(fd, name, splitters[options.format]), history, self._end.wrong)

    async def _open_input(self) -> int:
        path = self._options.items
        if path is None:
            # Not by its number, which may have been given to another file since the command was started.
            if sys.stdin is None:
                msg = f"cannot read {STANDARD_INPUT}: it is closed"
                raise UsageError(msg)
            return 0
        try:
            fd = await in_thread(os.open, path, os.O_RDONLY)
        except OSError as exc:
            msg = f"cannot open {path!r}: {reason(exc)}"
            raise UsageError(msg) from None
        self._stack.callback(os.close, fd)
        return fd

    async def _copy_input(self) -> None:
        """Read all of standard input into a file, since the last program may start when the first has ended."""
        try:
            copy, name = tempfile.mkstemp()
            self._stack.callback(os.close, copy)
            # A file without a name is removed with this process, however that ends. It can be opened again only
            # through this folder.
            self._stdin = f"/proc/self/fd/{copy}"
            if os.path.exists(self._stdin):  # noqa: ASYNC240, PTH110  # it asks no disk
                Path(name).unlink()  # noqa: ASYNC240  # as quick as making it
            else:
                self._stdin = name
                self._stack.callback(Path(name).unlink)
            while piece := await read_piece(0, STANDARD_INPUT):
                write_all(copy, piece)
        except OSError as exc:
            msg = f"cannot keep a copy of standard input in {temporary_place()}: {reason(exc)}"
            raise FatalError(msg) from None

    async def _print_words(self, jobs: AsyncIterable[Job]) -> None:
        async for job in jobs:
            error = None
            try:
                words = [word.decode("utf-8", "surrogateescape") for word in self._programs.words(job)]
            except ValueError as exc:
                error = _start_error(exc)
            else:
                await self._output.print_line(shlex.join(words).encode("utf-8", "surrogateescape") + b"\n")
            self._end.tally.finish(job, error)

    # What is done for each job

    async def _run_job(self, job: Job) -> Result | None:
        """Run the program of a job. None if it was not started, or ended with the whole run."""
        try:
            result = await self._attempts(job)
        except FatalError as exc:
            self._end.give_up(exc)
            return None
        if result is None:
            return None  # the loop that calls this sees to checkpoints
        # A program that does not exist fails for every item.
        hopeless = not result.found and not self._end.started and self._programs.are_one
        self._end.finish(job, result.error, hopeless=hopeless)
        if self._log is not None:
            try:
                await self._log.append(result.json_line())
            except FatalError as exc:
                self._end.give_up(exc)
        if result.error is not None and self._end.tells_each:
            await self._output.say(f"{shown_job(job)} failed: {result.error}")
        return result

    async def _attempts(self, job: Job) -> Result | None:
        """Start the program of a job, again if it is to be retried, until it succeeds or has failed often enough."""
        result = await self._attempt(job)
        if result is None or self._options.retries is None:
            return result
        attempts = 1
        while result.error is not None and attempts <= self._options.retries and not result.hopeless:
            with self._end.starting.scope():
                await trio.sleep(_pause_after(attempts))
            again = None if self._end.stopped else await self._attempt(job)
            if again is None:
                # After an interrupt, the failed attempt is the result. After the failure of another item, this one has
                # no result: the next attempt might have succeeded.
                if self._end.signal is None:
                    result.close()
                    return None
                break
            result.close()
            result = again
            attempts += 1
        return attrs.evolve(result, attempts=attempts)

    async def _run_once(self, job: Job) -> Result | None:
        if self._wait_for_turn is not None:
            with self._end.starting.scope():
                await self._wait_for_turn()
        if self._end.stopped:
            return None
        started, began = time.time(), trio.current_time()

        def result(exit_code: int | None, outputs: list[Kept], error: str | None, **start: bool) -> Result:
            seconds = trio.current_time() - began
            words, batch = self._programs.program(job), self._options.batch is not None
            return Result(job, words, exit_code, outputs, started, seconds, error, batch=batch, **start)

        try:
            program = self._launcher.start(self._programs.words(job))
        except (OSError, ValueError) as exc:
            found = not isinstance(exc, OSError) or exc.errno not in _NO_SUCH_PROGRAM
            hopeless = not isinstance(exc, OSError) or exc.errno not in _NO_ROOM
            return result(None, self._launcher.outputs(), _start_error(exc), found=found, hopeless=hopeless)
        timeout = math.inf if self._options.timeout is None else self._options.timeout
        scope = trio.CancelScope(deadline=began + timeout)
        running = Running(job, program, scope, began, f"timed out after {timeout:g} seconds")
        with self._end.watched(running):
            over = await program.run(scope)
        if over and not await self._ended_with_all(program):
            return result(program.exit_code, program.outputs, _exit_error(program.exit_code))
        if over or running.error is None:
            program.close()
            return None
        return result(program.exit_code, program.outputs, running.error)

    async def _ended_with_all(self, program: Program) -> bool:
        """Whether a program that was killed by a signal was so with the whole run.

        Raises:
            BrokenPipeError: it was killed since nobody reads standard output.
        """
        number = -(program.exit_code or 0)
        if number == signal.SIGPIPE and self._options.output == "none" and _output_is_closed():
            raise BrokenPipeError
        if number in TERMINATE:
            # A service manager sends SIGTERM to all processes at once. Then the program has not failed by itself, and
            # the signal is about to arrive here, too.
            with trio.move_on_after(MOMENT):
                await self._end.terminated.wait()
                return True
        return False


def _pause_after(attempts: int) -> float:
    """Seconds from the failure of that many attempts to the next one: 1, 2, 4 and so on, and not the same for all."""
    return min(2.0 ** min(attempts - 1, 10), LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311  # no secret


_NO_ROOM: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

_NO_SUCH_PROGRAM: Final = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC)


def _start_error(exc: OSError | ValueError) -> str:
    if not isinstance(exc, OSError) or exc.filename is None:
        return f"cannot start: {reason(exc)}"
    name = os.fsdecode(exc.filename)
    error = f"cannot start {shown(name)}: {reason(exc)}"
    if exc.errno == errno.ENOENT and (" " in name or is_for_a_shell(name)):
        error += f" (no shell is involved: to use one, run {WITH_A_SHELL})"
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
