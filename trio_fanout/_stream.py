"""Results as they come, with backpressure: `stream`.

A stream is a run that a task of its own drives to its end, with a window as its source and the reader's buffer as its
sink. The nursery around the block holds just that task, so a failing item cancels other items and never the block.
"""

from __future__ import annotations

import functools
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, TypeVar, final, overload

import trio
from outcome import Error, Value

from ._arguments import check_function, check_seconds, name_of
from ._drive import drive
from ._limits import DEFAULT_LIMIT, check_limit, check_not_held
from ._nursery import BareNursery, chain, raise_unchanged
from ._policies import Collect, FailFast, Ledger, Settle, check_never_moves_on, open_ledger
from ._run import SLICE, Run
from ._sources import is_async
from ._window import Window, WindowedPull, WindowedQueue, check_buffer

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from outcome import Outcome
    from trio.lowlevel import Abort, RaiseCancelT, Task

    from ._sources import Source

T = TypeVar("T")
R = TypeVar("R")
ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")

_FAIL_FAST = FailFast()


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
    policy: FailFast | Collect | Settle = _FAIL_FAST,
    item_timeout: float | None = None,
    ordered: bool = True,
    buffer: float | None = None,
) -> AbstractAsyncContextManager[ResultChannel[T, Any]]:
    """Run an async function on many items, and hand over the results as they come, with backpressure.

    ``async with stream(...) as results`` starts the run and gives a `ResultChannel` of `Completed` tuples, to be read
    in the block. The items run beside the block, and a failing item never cancels the block in the middle of
    something: what went wrong is raised where the results are read.

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
            `limit`. At most `limit` + `buffer` items are taken from `items` and not yet handed over, so that a slow
            reader slows the workers down.

    Returns:
        An async context manager. What its block raises leaves it bare. When the block is left, what is in flight is
        cancelled and waited for.

    Raises:
        TypeError, ValueError: at once, if an argument is wrong.
        RuntimeError: on entry, if the task holds a token of `limit`, as for `map`.
        Exception: from reading, the failure or what `items` raised; on leaving, if it was not raised by then and the
            block raises nothing itself.

    **Cancellation** of the block cancels the items. A failure that nobody has seen is raised in its place.

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
    check_seconds(item_timeout, "item_timeout")
    check_buffer(buffer)
    ledger = open_ledger(policy, (FailFast, Collect, Settle), "stream")
    check_never_moves_on(policy, "stream")
    window = Window(limit, buffer)
    results: _Buffer[T] = _Buffer(ledger, window, policy, ordered=ordered)
    return _Stream(fn, make_source, results, limit, item_timeout)


class _Buffer(Generic[T]):
    """The results on their way from the workers to the reader: the sink of the run."""

    def __init__(self, ledger: Ledger, window: Window, policy: object, *, ordered: bool) -> None:
        self.ledger: Final = ledger
        self.window: Final = window
        self._settle: Final = isinstance(policy, Settle)
        # What waits for an item that never comes is given out at the end, except where it should have no gaps.
        self._fail_fast: Final = isinstance(policy, FailFast)
        self._ordered: Final = ordered
        self._next = 0  # the index that is due
        self._early: dict[int, Completed[T, Any] | None] = {}  # results not yet due, None for an item that has none
        self.ready: Final[deque[Completed[T, Any]]] = deque()
        self.over: bool = False  # no result will be added
        self._reader: Task | None = None

    def succeeded(self, index: int, item: T, value: object, /) -> None:
        """Keep a result for the reader."""
        self._add(index, Completed(index, item, Value(value) if self._settle else value))

    def failed(self, index: int, item: T, exc: Exception, /, *, secondary: bool) -> object:
        """Keep a failure, for the end of the iteration or, under `Settle`, as a result."""
        cancels = self.ledger.failed(index, item, exc, secondary=secondary)
        if self._settle:
            self._add(index, Completed(index, item, Error(exc)))
        else:
            self.window.out -= 1  # it will not be handed over
            if not self._fail_fast:
                self._add(index, None)
        return cancels

    def cancelled(self, index: int, item: T, /) -> None:
        """Nothing: there is nothing to hand over."""

    def finish(self) -> None:
        """Let the reader have what is left, and then the end."""
        if not self._fail_fast:
            # Items that were cancelled left gaps.
            for index in sorted(self._early):
                self._give(self._early[index])
        self._early.clear()
        self.over = True
        self.wake()

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> None:
        """Sleep until there is something for the reader."""
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, _: RaiseCancelT) -> Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    @trio.lowlevel.enable_ki_protection
    def wake(self) -> None:
        """Have the reader look, if it sleeps."""
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    def _add(self, index: int, completed: Completed[T, Any] | None) -> None:
        if not self._ordered:
            self._give(completed)
        elif index != self._next:
            self._early[index] = completed
            return
        else:
            self._give(completed)
            self._next += 1
            while self._next in self._early:
                self._give(self._early.pop(self._next))
                self._next += 1
        self.wake()

    def _give(self, completed: Completed[T, Any] | None) -> None:
        if completed is not None:
            self.ready.append(completed)


@final
class ResultChannel(trio.abc.ReceiveChannel[Completed[ItemT, ValueT]]):
    """The results of a `stream`, which makes it: a `trio.abc.ReceiveChannel` of `Completed` tuples.

    It can be iterated over with ``async for``, and given to whatever reads a channel. One task reads at a time. It is
    closed when the block of the stream is left.
    """

    def __init__(self, run: Run[ItemT, Any], buffer: _Buffer[ItemT]) -> None:
        self._run: Final = run
        self._buffer: Final = buffer
        self._error: Exception | None = None  # what the iteration ends with, until it is raised
        self._closed = False
        self._reading = False
        self._yield_at = perf_counter() + SLICE

    async def receive(self) -> Completed[ItemT, ValueT]:
        """Wait for the next result.

        While results are there already, this is a cancellation point each time, and lets other tasks run every few
        milliseconds.

        Returns:
            The next `Completed` tuple: by index if the stream is ordered, otherwise as items finish.

        Raises:
            trio.EndOfChannel: there is none any more.
            Exception: the failure, or what the source raised, when all results before it have been handed over.
            trio.BusyResourceError: another task is reading.
            trio.ClosedResourceError: the channel is closed, or is closed by another task during this call.
        """
        if self._reading:
            msg = "another task is reading the results"
            raise trio.BusyResourceError(msg)
        buffer = self._buffer
        self._reading = True
        try:
            if not self._has_news():
                while not self._has_news():
                    await buffer.wait()
                self._yield_at = perf_counter() + SLICE
            elif buffer.ready and perf_counter() < self._yield_at:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.checkpoint()
                self._yield_at = perf_counter() + SLICE
        finally:
            self._reading = False
        if self._closed:
            # Where that is because of a cancellation that this task can see, it should see it.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise trio.ClosedResourceError
        if not buffer.ready:
            self._raise_end()
        # Nothing waits from here on: a cancelled call has lost no result.
        buffer.window.out -= 1
        self._run.look_again()
        return buffer.ready.popleft()

    def _has_news(self) -> bool:
        return bool(self._buffer.ready) or self._buffer.over or self._closed

    def stop(self) -> None:
        """Start no further item; those in flight finish and are handed over, and then the iteration ends.

        An item that has been taken from the source and not been started is dropped: one that has just been read, or
        waits for a token.

        This is the way to wind down without losing work, from a task that waits for Ctrl-C, say. To do it again does
        nothing.
        """
        self._run.stop()

    async def aclose(self) -> None:
        """Close the channel: cancel the items in flight, and drop the results that were not read.

        It does not wait for them: leaving the block does. Always a checkpoint.
        """
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        self._closed = True
        self._run.cancel()
        self._buffer.ready.clear()
        self._buffer.wake()

    def _raise_end(self) -> NoReturn:
        if self._error is None or isinstance(self._error, (trio.EndOfChannel, StopAsyncIteration)):
            # A failure that a reader would take for the end is left for the end of the block to raise.
            raise trio.EndOfChannel
        error, self._error = self._error, None  # raised once, and without a cycle through this frame
        try:
            raise_unchanged(error)
        finally:
            del error

    def _conclude(self, leaving: BaseException | None) -> BaseException | None:
        """What leaves the block: a failure that nobody has seen, over a cancellation too."""
        error, self._error = self._error, None
        stray = self._run.take_stray()
        if leaving is None:
            leaving = stray
        if error is None:
            return leaving
        if leaving is None or isinstance(leaving, trio.Cancelled):
            return error
        chain(leaving, error)
        return leaving


class _Stream(Generic[T, R]):
    """The context manager that `stream` returns: a class, because no generator should yield inside a nursery."""

    def __init__(
        self,
        fn: Callable[[T], Awaitable[R]],
        make_source: Callable[[Window], Source[T]],
        buffer: _Buffer[T],
        limit: float | trio.CapacityLimiter,
        item_timeout: float | None,
    ) -> None:
        self._fn: Final = fn
        self._make_source: Final = make_source
        self._buffer: Final = buffer
        self._limit: Final = limit
        self._item_timeout: Final = item_timeout

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> ResultChannel[T, Any]:
        check_not_held(self._limit)
        self._source = self._make_source(self._buffer.window)
        name = f"stream({name_of(self._fn)})"
        self._run = Run(self._fn, self._source, self._buffer, self._limit, self._item_timeout, name)
        self._results: ResultChannel[T, Any] = ResultChannel(self._run, self._buffer)
        self._bare = BareNursery(self._results._conclude)
        nursery = await self._bare.__aenter__()
        nursery.start_soon(self._drive, name=f"{name}: source")
        return self._results

    async def _drive(self) -> None:
        try:
            await drive(self._run, self._source, functools.partial(self._buffer.ledger.conclude, self._run))
        except Exception as exc:  # noqa: BLE001  # all of them are the reader's
            self._results._error = exc
        except BaseException as exc:
            self._run.note_stray(exc)  # the nursery of the block would swallow it, too
            # The block is cancelled, or soon will be, but maybe not the task that reads: to it this is not the end.
            self._results._closed = True
            raise
        finally:
            self._buffer.finish()
            if self._results._closed:
                self._buffer.ready.clear()
            self._buffer.ledger.clear()  # handed over, or raised

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self._results._close()
        try:
            return await self._bare.__aexit__(etype, exc, tb)
        finally:
            del exc, tb  # this frame is in the traceback of each Cancelled, which may be part of a chain
