"""Results as they arrive, with backpressure: `stream`.

A stream is a run that a task of its own drives to its end, with a window as its source and the reader's buffer as its
sink. The nursery around the block holds just that task, so a failing item cancels other items and never the block.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar, final, overload

import attrs
import trio
from outcome import Error, Value

from ._arguments import check_bool, check_function, check_seconds, name_of
from ._core.exceptions import chain, is_cancelled, raise_unchanged
from ._core.feeding import run_all
from ._core.limits import DEFAULT_LIMIT, Tokens, check_limit, check_not_held
from ._core.nursery import SingleExceptionNursery, raise_or_return
from ._core.run import Run
from ._core.slices import current_slice
from ._core.sources import is_async
from ._core.windows import Window, WindowedPull, WindowedQueue, check_buffer
from ._ledgers import Ledger, start_ledger
from ._opening import NoPublicConstructor, OpensOnce, check_in_run, create
from ._policies import FAIL_FAST, Collect, FailFast, Settle, check_never_moves_on
from ._protection import protected
from ._tracebacks import shorten_endless

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from outcome import Outcome

    from ._core.sources import Source

T = TypeVar("T")
R = TypeVar("R")
ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


class Completed(NamedTuple, Generic[ItemT, ValueT]):
    """A result of `stream`: the item's index in the source, the item, and what the function returned for it.

    Under `Settle`, `value` is an outcome.
    """

    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index
    item: ItemT
    value: ValueT


@overload
def stream(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FailFast | Collect = ...,
    item_timeout: float | None = ...,
    ordered: bool = ...,
    buffer: float | None = ...,
) -> AbstractAsyncContextManager[ResultChannel[T, R]]: ...
@overload
def stream(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: Settle,
    item_timeout: float | None = ...,
    ordered: bool = ...,
    buffer: float | None = ...,
) -> AbstractAsyncContextManager[ResultChannel[T, Outcome[R]]]: ...
def stream(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle = FAIL_FAST,
    item_timeout: float | None = None,
    ordered: bool = True,
    buffer: float | None = None,
) -> AbstractAsyncContextManager[ResultChannel[T, Any]]:
    """Run an async function on many items, and hand over the results as they arrive, with backpressure.

    ``async with stream(...) as results`` starts the run and yields a `ResultChannel` of `Completed` tuples, to be read
    in the block. The items run beside the block, and a failing item never interrupts the block: its failure is raised
    where the results are read.

    Args:
        fn: as for `map`.
        items: as for `map`, but an async iterable is read in a task of its own. May be endless.
        limit: as for `map`.
        policy: `FailFast()`, the default: the results that can still be handed over come first, and then the failure
            is raised (if ordered, those are the results before the failed item, with none missing between).
            `Collect()`: successes are handed over, and a `FanOutError` without `results` is raised at the end.
            `Settle()`: the values that are handed over are outcomes.
        item_timeout: as for `map`.
        ordered: whether results are handed over in the order of the items, which is the default, or as they finish.
        buffer: how many results may wait for the reader: an int of 0 or more, or `math.inf`; by default as many as
            `limit`. At most `limit` + `buffer` items are taken from `items` and not yet handed over. So a slow reader
            slows the workers down.

    Returns:
        An async context manager, to be entered once. If its block raises, the exception is raised unwrapped. When the
        block is left, whatever is in flight is cancelled and waited for.

    Raises:
        TypeError, ValueError: immediately, if an argument is wrong.
        RuntimeError: on entry, if the task holds a token of `limit`, as for `map`.
        Exception: from reading, the failure or what `items` raised; on leaving, if it was not raised by then and the
            block raises nothing itself.

    **Cancellation** of the block cancels the items. A failure that was never handed over is raised instead of the
    cancellation.

    Example::

        async with fanout.stream(fetch, urls, limit=20) as results:
            async for index, url, page in results:
                await save(url, page)
    """
    check_function(fn)
    make_source: Callable[[Window], Source[T]] = (
        functools.partial(WindowedQueue, items) if is_async(items) else functools.partial(WindowedPull, items)
    )
    check_limit(limit)
    ledger = start_ledger(policy, (FailFast, Collect, Settle), "stream")
    check_never_moves_on(policy, "stream")
    check_seconds(item_timeout, "item_timeout")
    check_bool(ordered, "ordered")
    check_buffer(buffer)
    return _Stream[T, R](fn, make_source, ledger, limit, item_timeout, ordered, buffer)


@final
@attrs.frozen
class ResultStatistics:
    """What a stream is doing, as `ResultChannel.statistics` returns it.

    Attributes:
        running: how many items are running.
        ready: how many results `ResultChannel.receive` would return immediately.
        outstanding: how many items were taken from the source and not yet handed over.
        stopped: whether `ResultChannel.stop`, a failure or the end of the block has ended the stream.
    """

    running: int
    ready: int
    outstanding: int
    stopped: bool


@attrs.define(eq=False)
class _Results(Generic[T]):
    """What the parts of a stream share: results on their way from the workers to the reader. The sink of the run."""

    ledger: Ledger
    window: Window
    ordered: bool
    ready: deque[Completed[T, Any]] = attrs.field(
        factory=deque[Completed[T, Any]]
    )  # results for the reader, in its order
    # Results that are not yet due; None for an item that has none.
    early: dict[int, Completed[T, Any] | None] = attrs.field(factory=dict[int, "Completed[T, Any] | None"])
    due: int = 0  # the index that is due next, if ordered
    reader: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)  # while nothing is ready
    over: bool = False  # no result will be added
    cut_short: bool = False  # by `stop` or a failure: some items have no result
    closed: bool = False  # by `aclose`, the end of the block, or a BaseException that is not an Exception
    error: Exception | None = None  # what the iteration ends with, until it is raised

    def succeeded(self, index: int, item: T, value: object, /) -> None:
        """Add a result for the reader."""
        self._add(index, Completed(index, item, Value(value) if self.ledger.hands_over_failures else value))

    def failed(self, index: int, item: T, exc: Exception, /, *, secondary: bool) -> str | None:
        """Add a failure as a result, or keep it for the end of the iteration."""
        if self.ledger.hands_over_failures:
            shorten_endless(exc)
            self._add(index, Completed(index, item, Error(exc)))
            return None
        reason = self.ledger.failed(index, item, exc, secondary=secondary)
        self.cut_short |= reason is not None
        self.window.free()  # it will not be handed over
        if self.ledger.goes_on:
            self._add(index, None)
        return reason

    def cancelled(self, index: int, item: T, /) -> None:
        """Add nothing: there is nothing to hand over."""

    def label(self, index: int, /) -> str:
        """What an item is called in messages."""
        return self.ledger.label(index)

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the iteration ends with. One that was wound down or closed need not be complete."""
        return self.ledger.conclude(leaving, started, complete=complete or self.cut_short or self.closed)

    def finish(self) -> None:
        """Let the reader have what is left, and then the end."""
        if self.ledger.goes_on:
            # Items that were cancelled left gaps.
            for index in sorted(self.early):
                self._give(self.early[index])
        self.early.clear()
        self.over = True
        if self.closed:
            self.ready.clear()
        self.wake()

    def close(self) -> None:
        """Drop the results that were not read."""
        self.closed = True
        self.ready.clear()
        self.wake()

    def wake(self) -> None:
        """Have the reader look, if it sleeps."""
        if self.reader:
            self.reader.unpark()

    def has_news(self) -> bool:
        """Whether there is something for the reader: a result, or the end."""
        return bool(self.ready) or self.over or self.closed

    def raise_end(self) -> NoReturn:
        """Raise what the iteration ends with."""
        if self.error is None or isinstance(self.error, (trio.EndOfChannel, StopAsyncIteration)):
            # A failure that a reader would take for the end is left for the end of the block to raise.
            raise trio.EndOfChannel
        error, self.error = self.error, None  # raised once, and without a cycle through this frame
        try:
            raise_unchanged(error)
        finally:
            del error

    def conclude_block(self, leaving: BaseException | None) -> BaseException | None:
        """Choose what the block raises: a failure that was never handed over, over a cancellation too."""
        error, self.error = self.error, None
        if error is None:
            return leaving
        if leaving is None or is_cancelled(leaving):
            return error
        chain(leaving, error)
        return leaving

    def _add(self, index: int, completed: Completed[T, Any] | None) -> None:
        if not self.ordered:
            self._give(completed)
        elif index != self.due:
            self.early[index] = completed
            return
        else:
            self._give(completed)
            self.due += 1
            while self.due in self.early:
                self._give(self.early.pop(self.due))
                self.due += 1
        self.wake()

    def _give(self, completed: Completed[T, Any] | None) -> None:
        if completed is not None:
            self.ready.append(completed)


@final
@protected()  # interrupted halfway, a result would count as handed over, or an end as a failure
class ResultChannel(trio.abc.ReceiveChannel[Completed[ItemT, ValueT]], metaclass=NoPublicConstructor):
    """The results of a `stream`, which makes it: a `trio.abc.ReceiveChannel` of `Completed` tuples.

    It can be iterated over with ``async for``, and given to whatever reads a channel. One task reads at a time. It is
    closed when the block of the stream is left.
    """

    def __init__(self, run: Run[ItemT, Any], results: _Results[ItemT], limiter: trio.CapacityLimiter) -> None:
        self._run = run
        self._results = results
        self._limiter = limiter
        self._reading = False  # a task is in `receive`
        self._slice = current_slice()
        self._trio_token = trio.lowlevel.current_trio_token()

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._results.closed else "stopped" if now.stopped else "open"
        return f"<trio_fanout.ResultChannel, {state}: {now.running} running, {now.ready} ready>"

    @property
    def limiter(self) -> trio.CapacityLimiter:
        """The `trio.CapacityLimiter` that drives the stream, which is the one that was passed, or its own.

        Changing its `total_tokens` slows the stream down or speeds it up while it runs, at the latest when the next
        item finishes or the next result is received; 0 pauses it. To share tokens with other tasks, pass a limiter: on
        its own one, a stream may keep a token from item to item, and others wait until it finds none.
        """
        return self._limiter

    async def receive(self) -> Completed[ItemT, ValueT]:
        """Wait for the next result.

        While results are ready, this is a cancellation point each time, and lets other tasks run every few
        milliseconds.

        Returns:
            The next `Completed` tuple: by index if the stream is ordered, otherwise as items finish.

        Raises:
            trio.EndOfChannel: there are no more results.
            Exception: the failure, or what the source raised, when all results before it have been handed over.
            trio.BusyResourceError: another task is reading.
            trio.ClosedResourceError: the channel is closed, or is closed by another task during this call.
        """
        if self._reading:
            msg = "another task is reading the results"
            raise trio.BusyResourceError(msg)
        results = self._results
        self._reading = True
        try:
            if not results.has_news():
                while not results.has_news():
                    await results.reader.park()
            elif results.ready and self._slice.now() < self._slice.end:  # it is not over
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await self._slice.next(self)
        finally:
            self._reading = False
        if results.closed:
            # Where that is because of a cancellation that this task can see, it should see it.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise trio.ClosedResourceError
        if not results.ready:
            results.raise_end()
        # Nothing waits from here on: a cancelled call has lost no result.
        results.window.free()
        self._run.room_freed()
        return results.ready.popleft()

    def stop(self) -> None:
        """Start no further item; those in flight finish and are handed over, and then the iteration ends.

        An item that has been taken from the source and not been started is dropped: one that has just been read, or
        waits for a token.

        Use it to wind down without losing work, for example from a task that waits for Ctrl-C. Calling it again does
        nothing.

        Raises:
            RuntimeError: called from another thread.
        """
        check_in_run(self._trio_token, "stop()")
        self._run.stop()
        self._results.cut_short = True

    async def aclose(self) -> None:
        """Close the channel: cancel the items in flight, and drop the results that were not read.

        It does not wait for them: leaving the block does. Always a checkpoint.
        """
        self._run.cancel("the channel was closed")
        self._results.close()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> ResultStatistics:
        """What the stream is doing now.

        Returns:
            A frozen `ResultStatistics`.
        """
        return ResultStatistics(
            running=self._run.running(),
            ready=len(self._results.ready),
            outstanding=self._results.window.outstanding,
            stopped=self._run.ended_early or self._results.cut_short or self._results.closed,
        )


@protected()
class _Stream(OpensOnce, Generic[T, R]):
    """The context manager that `stream` returns: a class, because no generator should yield inside a nursery."""

    opener: ClassVar[str] = "stream"
    opens: ClassVar[type] = ResultChannel

    def __init__(
        self,
        fn: Callable[[T], Awaitable[R]],
        make_source: Callable[[Window], Source[T]],
        ledger: Ledger,
        limit: float | trio.CapacityLimiter,
        item_timeout: float | None,
        ordered: bool,  # noqa: FBT001
        buffer: float | None,
    ) -> None:
        self._fn = fn
        self._make_source = make_source
        self._ledger = ledger
        self._limit = limit
        self._item_timeout = item_timeout
        self._ordered = ordered
        self._buffer = buffer

    async def __aenter__(self) -> ResultChannel[T, Any]:
        self.note_entry()
        check_not_held(self._limit)
        tokens = Tokens(self._limit)
        window = Window(tokens, self._buffer)
        self._results: _Results[T] = _Results(self._ledger, window, self._ordered)
        source = self._make_source(window)
        name = f"stream({name_of(self._fn)})"
        self._run = Run(
            self._fn, source, self._results, tokens, name, item_timeout=self._item_timeout, limiter_shown=True
        )
        channel: ResultChannel[T, Any] = create(ResultChannel, self._run, self._results, tokens.limiter)
        self._nursery = SingleExceptionNursery()
        await self._nursery.open()
        self._nursery.start_soon(self._work, source, name=f"{name}: source")
        return channel

    async def _work(self, source: Source[T]) -> None:
        """The task of the run: a failing item cancels other items, and never the block."""
        try:
            await run_all(self._run, source)
        except Exception as exc:  # noqa: BLE001  # all of them are the reader's
            self._results.error = exc
        except BaseException as exc:  # noqa: ASYNC103  # kept, or raised again
            # The block is cancelled, or soon will be, but maybe not the task that reads: to it this is not the end.
            self._results.closed = True
            if not self._nursery.keep(exc, "an item raised a BaseException"):
                raise
        finally:
            self._results.finish()
            self._ledger.clear()  # handed over, or raised

    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self._results.close()
        self._run.cancel("the block of the stream was left")
        try:
            return raise_or_return(self._results.conclude_block(await self._nursery.close(exc)), exc)
        finally:
            del exc, tb  # see `exceptions`
