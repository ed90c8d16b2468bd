"""What the three commands do: each is a stream, of a function that runs one program."""

from __future__ import annotations

import math
import os
import select
import signal
from contextlib import ExitStack, nullcontext
from io import BytesIO
from typing import TYPE_CHECKING, Final

import trio

import trio_fanout as fanout

from ._inputs import CommandInput, ItemInput
from ._log import Log
from ._output import Output
from ._programs import allow_open_files
from ._progress import Tally, open_display
from ._results import Result
from ._shutdown import Shutdown, signals_to_obey
from ._stdio import FatalError, UsageError, reason, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import IO

    from ._inputs import Input
    from ._items import Job
    from ._parser import Options

AHEAD: Final = 256
"""How many results may wait for an earlier one to be printed, until nothing more is started."""

SUCCESS, FAILURE, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
"""The exit codes."""


async def run(options: Options) -> int:
    """Do what the options say; returns the exit code."""
    allow_open_files(options.parallel)
    shutdown = Shutdown()
    output = Output(options.output, open_display(wanted=options.progress))
    obeyed = signals_to_obey()
    with trio.open_signal_receiver(*obeyed) if obeyed else nullcontext() as signals:
        async with trio.open_nursery() as helpers:
            if signals is not None:
                helpers.start_soon(shutdown.obey, signals, output.say)
            try:
                code = await _run(options, shutdown, output, helpers)
            except UsageError as exc:
                output.say(str(exc))
                code = WRONG_USE
            except FatalError as exc:
                output.say(str(exc))
                code = FAILURE
            except BrokenPipeError:
                code = FAILURE  # who reads the results has seen enough
            helpers.cancel_scope.cancel()
    return INTERRUPTED if shutdown.interrupted else code


async def _run(options: Options, shutdown: Shutdown, output: Output, helpers: trio.Nursery) -> int:
    with ExitStack() as stack:
        log = None
        if options.log is not None:
            log = Log(options.log, resume=options.resume)
            stack.callback(log.close)
        wanted = _everything if log is None else log.wants
        source: Input
        if options.command == "fan-out":
            source = fan_out = CommandInput(options, wanted, stack)
            with shutdown.waiting():
                await fan_out.read_input()
        else:
            source = items = ItemInput(options, wanted, stack)
            if output.shows_progress and options.format != "json":
                helpers.start_soon(items.count)
        tally = Tally(source.total)
        if output.shows_progress:
            helpers.start_soon(output.keep_drawing, tally)
        runner = _Runner(options, source, shutdown, log, tally, output)
        stack.callback(runner.close)
        with shutdown.printing:
            await _print_results(runner, source, options, shutdown, output)
    if tally.first_failure is None:
        return SUCCESS
    first = _failure(*tally.first_failure)
    output.say(first if tally.failed == 1 else f"{first} ({tally.failed} of {tally.done} items failed)")
    return FAILURE


async def _print_results(runner: _Runner, source: Input, options: Options, shutdown: Shutdown, output: Output) -> None:
    # What is not captured is not printed either, and need not be in order.
    ordered = options.output != "none"
    async with fanout.stream(runner.run, source.jobs, limit=options.parallel, ordered=ordered, buffer=AHEAD) as results:
        shutdown.wind_down(results)
        async for _, _, result in results:
            if result is None:
                continue
            if options.output != "none":
                await output.show(result)
            runner.forget(result)


class _Runner:
    """Runs the program of one job, and says what came of it."""

    def __init__(
        self, options: Options, source: Input, shutdown: Shutdown, log: Log | None, tally: Tally, output: Output
    ) -> None:
        self._source: Final = source
        self._shutdown: Final = shutdown
        self._log: Final = log
        self._tally: Final = tally
        self._unprinted: Final[set[Result]] = set()
        self._captures: Final = options.output != "none"
        self._timeout: Final[float | None] = options.timeout
        self._fail_fast: Final[bool] = options.fail_fast
        self._wait_for_turn: Final[Callable[[], Awaitable[None]] | None] = (
            None if options.rate is None else fanout.throttle(trio.lowlevel.checkpoint, options.rate)
        )
        # Where results are not printed as JSON, nothing else would tell which items failed.
        self._tell: Final = None if options.output == "json" or options.fail_fast else output.say

    async def run(self, job: Job) -> Result | None:
        """Run the program of a job. None if it was not started, or ended with the whole run."""
        if self._wait_for_turn is not None:
            with self._shutdown.waiting():
                await self._wait_for_turn()
        if self._shutdown.stopped:
            return None  # the loop that calls this sees to checkpoints
        result = await self._result(job)
        if result is None:
            return None
        self._unprinted.add(result)
        self._tally.add(job.index, job.item, result.error)
        if self._log is not None:
            self._log.append(result.json_line())
        if result.error is not None:
            if self._tell is not None:
                self._tell(_failure(job.index, job.item, result.error))
            if self._fail_fast:
                self._shutdown.end()
        return result

    def forget(self, result: Result) -> None:
        """Close the files of a result that is not used any more."""
        result.close()
        self._unprinted.discard(result)

    def close(self) -> None:
        """Close the files of results that were never printed."""
        while self._unprinted:
            self._unprinted.pop().close()

    async def _result(self, job: Job) -> Result | None:
        began = trio.current_time()
        outputs: Sequence[IO[bytes]] = ()

        def result(exit_code: int | None, error: str | None) -> Result:
            return Result(job.index, job.item, exit_code, outputs, trio.current_time() - began, error)

        with self._shutdown.running(self._timeout) as scope:
            try:
                program = self._source.start(job)
            except (OSError, ValueError) as exc:
                outputs = [BytesIO(), BytesIO()] if self._captures else ()
                return result(None, _start_error(exc))  # as above
            outputs = program.outputs
            with self._shutdown.suspending(program):
                over = await program.run(scope)
            if over:
                if program.exit_code == -signal.SIGPIPE and not self._captures and _output_is_closed():
                    raise BrokenPipeError
                return result(program.exit_code, _exit_error(program.exit_code))
        if scope.deadline == math.inf:
            program.close()
            return None  # not its own time-out: it is ended with the whole run
        return result(program.exit_code, f"timed out after {self._timeout:g} seconds")


def _everything(_: Job) -> bool:
    return True


def _start_error(exc: OSError | ValueError) -> str:
    name = exc.filename if isinstance(exc, OSError) else None
    return f"cannot start{'' if name is None else ' ' + shown(os.fsdecode(name))}: {reason(exc)}"


def _exit_error(exit_code: int | None) -> str | None:
    if exit_code is not None and exit_code < 0:
        try:
            return f"killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"killed by signal {-exit_code}"
    return f"exit code {exit_code}" if exit_code else None


def _output_is_closed() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _failure(index: int, item: str, error: str) -> str:
    return f"item {index} ({shown(item)}) failed: {error}"
