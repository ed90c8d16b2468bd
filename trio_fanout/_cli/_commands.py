"""The three commands. Each is a `stream` of a function that runs one program."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Final

import trio

import trio_fanout as fanout

from .._startup import INTERRUPTED
from ._history import History
from ._inputs import CommandInput, ItemInput, open_items, programs_of
from ._log import Log
from ._output import Output
from ._programs import Launcher
from ._progress import Tally, open_display
from ._runner import Runner
from ._shutdown import Shutdown, signals_to_obey
from ._spool import Spool
from ._stdio import FatalError, UsageError, in_thread

if TYPE_CHECKING:
    from ._inputs import Input
    from ._items import Job
    from ._parser import Options

AHEAD: Final = 256
"""How many results may wait for an earlier one to be printed, until nothing more is started."""

SUCCESS, FAILURE, WRONG_USE = 0, 1, 2
"""The exit codes, and INTERRUPTED."""


async def run(options: Options) -> int:
    """Do what the options say; returns the exit code."""
    shutdown = Shutdown()
    output = Output(options.output, open_display(wanted=options.progress and not options.dry_run))
    obeyed = signals_to_obey()
    with ExitStack() as stack, trio.open_signal_receiver(*obeyed) if obeyed else nullcontext() as signals:
        async with trio.open_nursery() as helpers:
            if signals is not None:
                helpers.start_soon(shutdown.obey, signals, output.say_if_ready)
            try:
                code = await _run(options, shutdown, output, helpers, stack)
            except UsageError as exc:
                await output.say(str(exc))
                code = WRONG_USE
            except FatalError as exc:
                await output.say(str(exc))
                code = FAILURE
            except BrokenPipeError:
                code = FAILURE  # the reader of the results has seen enough
            helpers.cancel_scope.cancel()
    return INTERRUPTED if shutdown.interrupted else code


async def _run(options: Options, shutdown: Shutdown, output: Output, helpers: trio.Nursery, stack: ExitStack) -> int:
    with shutdown.waiting() as scope:  # opening a named pipe waits for its other end
        source, log = await _open(options, stack)
    if scope.cancelled_caught:
        return INTERRUPTED
    if options.dry_run:
        await _print_words(source, shutdown, output)
        return SUCCESS
    tally = Tally(source.total)
    if output.shows_progress:
        helpers.start_soon(output.keep_drawing, tally)
        helpers.start_soon(source.count)
    spool = None
    if options.output != "none":
        spool = Spool()
        stack.callback(spool.close)
    launcher = stack.enter_context(Launcher(options.parallel, spool))
    helpers.start_soon(launcher.read_outputs)
    helpers.start_soon(shutdown.watch_for_stopped)
    runner = Runner(options, source, shutdown, launcher, log, tally, output)
    with shutdown.printing:
        await _print_results(runner, source, options, shutdown, output)
        if source.skipped:
            rest = "" if options.output == "none" else "; only the results of the others are printed"
            await output.say(f"skipped what the log says has succeeded ({source.skipped}){rest}")
        if tally.failed:
            await output.say(runner.last_words())
    return FAILURE if tally.failed else SUCCESS


async def _open(options: Options, stack: ExitStack) -> tuple[Input, Log | None]:
    history = log = None
    if options.log is not None:
        history = History()
        if options.resume:
            await in_thread(history.read, options.log, programs_of(options))
        if not options.dry_run:
            log = await in_thread(Log, options.log)
            stack.callback(log.close)
    if options.command != "fan-out":
        return ItemInput(options, await open_items(options.items, stack), history), log
    source = CommandInput(options, history, stack)
    if not options.dry_run:
        await source.read_input()
    return source, log


async def _print_words(source: Input, shutdown: Shutdown, output: Output) -> None:
    async def words(job: Job) -> bytes:  # noqa: ASYNC124  # as a stream takes it
        text = shlex.join(word.decode("utf-8", "surrogateescape") for word in source.words(job))
        return text.encode("utf-8", "surrogateescape") + b"\n"

    with shutdown.printing:
        async with fanout.stream(words, source.jobs, limit=1) as results:
            shutdown.wind_down(results)
            async for _, _, line in results:
                await output.print_line(line)


async def _print_results(runner: Runner, source: Input, options: Options, shutdown: Shutdown, output: Output) -> None:
    # What is not captured is not printed either, and need not be in order.
    ordered = options.output != "none"
    async with fanout.stream(runner.run, source.jobs, limit=runner.limit, ordered=ordered, buffer=AHEAD) as results:
        shutdown.wind_down(results)
        async for _, _, result in results:
            if result is not None:
                if options.output != "none":
                    await output.show(result)
                result.close()
