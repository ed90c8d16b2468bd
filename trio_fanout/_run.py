"""The loop: workers that take items from a source and run a function on them, under a limit.

A `Run` is given all it works with: the function, the source, a sink that is told of each success and each failure and
says whether to cancel, and the limiter. It holds no results and knows no policy. `map`, `stream`, `open_group` and
`run_graph` differ in what they give it.

Workers are tasks, and are reused: a worker runs its item and takes the next one itself. They are started as there is
work for them (`hire`, the one place), and leave when there is none, or idle while more may come from outside.

The life of a worker, as `Run._work` has it::

    breathe if it is time  ->  take an item  ->  borrow a token, if shared  ->  run it  ->  tell the sink  ->  again
            |                      | none
            |                      +-> leave, or idle until hired
            +-> Trio's other tasks run, and a cancellation is noticed
"""

from __future__ import annotations

import functools
import math
import types
from contextlib import suppress
from operator import is_
from time import perf_counter
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, cast

import trio

from ._arguments import NotAwaitable, check_awaitable
from ._line import Line
from ._nursery import is_cancelled, is_group

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Abort, RaiseCancelT, Task

    from ._sources import Source

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)

SLICE = 0.005
"""Seconds of real time that a run may take in one go before it lets Trio's other tasks in."""

AHEAD = 64
"""How many workers are started in one go, at the start of a run. Thousands would starve other tasks, and functions
that never wait would leave nothing for most of them to do."""


# For type checkers just a type: to know more than that the function returned an awaitable would not help them.
_COROUTINE: Final[type] = types.CoroutineType


class Sink(Protocol[T_contra, R_contra]):
    """Where the outcomes of items go. A true answer cancels the run.

    An item that ended without an outcome, or never will be started, is `cancelled`.
    """

    def succeeded(self, index: int, item: T_contra, value: R_contra, /) -> object: ...
    def failed(self, index: int, item: T_contra, exc: Exception, /, *, secondary: bool) -> object: ...
    def cancelled(self, index: int, item: T_contra, /) -> None: ...


class Run(Generic[T, R]):
    """One run of the loop, inside a nursery that the caller opens.

    What reschedules tasks is protected from Ctrl-C, as it is in Trio: half done, it would leave a task asleep for ever.
    """

    __slots__ = (
        "_bound",
        "_busy",
        "_feeder",
        "_fn",
        "_hires_late",
        "_idle",
        "_line",
        "_name",
        "_nursery",
        "_seeking",
        "_sink",
        "_source",
        "_stray",
        "_yield_at",
        "reading",
        "stopped",
        "taken",
    )

    def __init__(
        self,
        fn: Callable[[T], Awaitable[R]],
        source: Source[T],
        sink: Sink[T, R],
        limit: float | trio.CapacityLimiter,
        item_timeout: float | None,
        name: str,
    ) -> None:
        self._fn: Final = fn if item_timeout is None else functools.partial(_call_with_timeout, fn, item_timeout)
        self._source: Final = source
        self._hires_late: Final = source.open  # workers may be hired at any time, and not only as the run starts
        self._sink: Final = sink
        self._name: Final = name
        self._nursery: trio.Nursery | None = None
        # How many workers there may be. A limit of the run's own needs no tokens beside that: nobody else wants them,
        # so each worker would keep its own for as long as it lives.
        self._line: Line | None = None
        if isinstance(limit, trio.CapacityLimiter):
            self._line = Line(limit)
            self._bound = self._line.workers()
        elif source.open or not source.length:
            self._bound = limit
        else:
            self._bound = min(limit, source.length)  # more workers would find nothing: don't look for them
        self.taken: int = 0  # items that workers have taken from the source
        self._busy = 0  # workers that are not idle
        self._seeking = 0  # those of them that are on their way to the source, and have no item yet
        self._idle: Final[list[Task]] = []
        self._feeder: Task | None = None  # while it waits for room
        # The end of the run's slice of time; 0 if a worker is to look for a cancellation before it takes an item.
        self._yield_at = 0.0
        self.reading: trio.CancelScope | None = None  # around an async source that is being waited for
        self._stray: BaseException | None = None
        self.stopped: bool = False  # no item is started any more

    # What the owner of the nursery does

    def start(self, nursery: trio.Nursery) -> None:
        """Start as many workers in `nursery` as there are items for."""
        self._nursery = nursery
        self.hire(AHEAD)

    @trio.lowlevel.enable_ki_protection
    def hire(self, ahead: int = 1) -> None:
        """Bring more workers to the source, idle ones first, as many as it has work for and the limit allows.

        No more than `ahead` are then on their way. Where each worker that takes an item hires the next one, functions
        that never wait get along with few.
        """
        if self._line is not None:
            self._follow(self._line)
        room = self._bound - self._busy
        if room <= 0:
            return
        count = int(min(self._source.ready(self.taken), ahead, room + self._seeking)) - self._seeking
        if count <= 0:
            return
        assert self._nursery is not None
        self._seeking += count
        self._busy += count
        for _ in range(count):
            if self._idle:
                trio.lowlevel.reschedule(self._idle.pop())
            else:
                self._nursery.start_soon(self._work, name=self._name)

    def look_again(self) -> None:
        """Bring a worker or the feeder to the source, where it may have room again."""
        self.tell_feeder()
        if not self._seeking and self._busy < self._bound:
            self.hire()

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Send the workers home that wait for items from outside: there will be none."""
        self._source.open = False
        self._busy += len(self._idle)
        self._seeking += len(self._idle)
        while self._idle:
            trio.lowlevel.reschedule(self._idle.pop())

    def stop(self) -> None:
        """Start no further item; let those that run finish."""
        if self.stopped:
            return
        self._start_no_more()
        self.close()
        self.tell_feeder()
        if self.reading is not None:
            self.reading.cancel()

    def cancel(self) -> None:
        """Start no further item, and cancel those that run."""
        self._start_no_more()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _start_no_more(self) -> None:
        if self.stopped:
            return  # each worker that ends by an exception comes here: together they should not do it many times over
        self._bound = 0
        if self._line is not None:
            self._line.close()
        self.drop()
        self.stopped = True  # last, so that what Ctrl-C leaves undone is done by the next

    def drop(self) -> None:
        """Give up the items that never will be started."""
        for index, item in self._source.drop():
            self._sink.cancelled(index, item)

    @trio.lowlevel.enable_ki_protection
    async def has_room(self, full: Callable[[], bool]) -> bool:
        """Wait until an async source may be read, as a worker is free and it is not `full`; false if it never may."""
        if perf_counter() >= self._yield_at:
            await self._breathe(trio.lowlevel.cancel_shielded_checkpoint)  # shielded: see below
        while not self.stopped and (self._unfinished() >= self._bound or full()):
            self._feeder = trio.lowlevel.current_task()
            # Shielded, because a cancel scope that an async source holds open may surround this wait, and its
            # Cancelled should be raised inside of the source, where the scope can catch it. Cancelling the run itself
            # ends the workers, and the first of them to leave wakes this.
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting_for_room)
        return not self.stopped

    def _unfinished(self) -> float:
        """How many items have been read and not finished: workers that have one, and items that wait for a worker."""
        return self._busy - self._seeking + self._source.ready(self.taken)

    def _stop_waiting_for_room(self, _: RaiseCancelT) -> Abort:
        self._feeder = None
        return trio.lowlevel.Abort.SUCCEEDED

    @trio.lowlevel.enable_ki_protection
    def tell_feeder(self) -> None:
        """Have the reader of an async source look again whether there is room."""
        if self._feeder is not None:
            trio.lowlevel.reschedule(self._feeder)
            self._feeder = None

    def started(self) -> int:
        """How many items have been started."""
        return self.taken if self._line is None else self.taken - len(self._line)

    def was_started(self, index: int) -> bool:
        """Whether an item had been started when the run was over."""
        return index < self.taken and (self._line is None or index not in self._line)

    # What a worker does

    async def _work(self) -> None:
        fn, source, sink, line = self._fn, self._source, self._sink, self._line
        take, succeeded = source.take, sink.succeeded
        task = trio.lowlevel.current_task()
        self._seeking -= 1
        if self._hires_late and self._nursery is not None and self._nursery.cancel_scope.cancel_called:
            self._yield_at = 0.0  # cancelled since it was hired
        try:
            while True:
                if (source.context or task.context) and not same_context(source.context, task.context):
                    # An item left its mark, or the next one wants another context. As Trio's from_thread does it: the
                    # task runs in the new one from its next step on. Another worker may take the item meanwhile.
                    task.context = source.context.copy()
                    await self._breathe_between_items()
                    continue
                if perf_counter() >= self._yield_at:
                    await (self._breathe_between_items() if self._yield_at else self.begin())
                    continue
                if self._busy > self._bound:
                    return  # the limit is lower than it was, or the run is cancelled
                # From here to the start of the item nothing waits (but for a token), so that items start in order.
                entry = take()
                if entry is None:
                    if source.open:
                        await self._wait_to_be_hired(task)
                        continue
                    source.length = self.taken  # where it was not known, it is now
                    if self._idle:
                        self.close()
                    return
                index, item = entry
                self.taken = index + 1
                if self._busy != self._bound:
                    if self.stopped:  # by the source itself, as it gave this item
                        self.taken = index
                        sink.cancelled(index, item)
                        return
                    self.hire()
                if not (line is None or line.enter(task, index) or await self._wait_in(line, entry)):
                    return
                try:
                    awaitable = fn(item)
                    if type(awaitable) is not _COROUTINE:
                        check_awaitable(awaitable)
                    value = await awaitable
                except Exception as exc:  # noqa: BLE001  # that is what a failure is
                    ends_run = self._failed(index, item, exc)
                except BaseExceptionGroup as group:
                    raise self._keep_failure(index, item, group)  # noqa: B904  # part of the group, or all of it
                except BaseException:
                    sink.cancelled(index, item)
                    raise
                else:
                    ends_run = succeeded(index, item, value)
                finally:
                    if line is not None:
                        line.leave(task)
                        self._follow(line)
                if ends_run:
                    # Not where the failure is being handled: each task's Cancelled would hold it as its context.
                    self.cancel()
                # An idle worker, and one whose next item takes long, should keep nothing of this one alive, and a
                # failure, whose traceback leads here, should not be found here.
                entry = item = awaitable = value = None  # type: ignore[assignment]
        except BaseException as exc:
            # A cancellation, a KeyboardInterrupt, a source that raised, wrong use: the nursery cancels the others, who
            # might never wait and so not notice for a while.
            self._start_no_more()
            self.note_stray(exc)
            if line is not None:
                with suppress(RuntimeError):  # it has no token, unless Ctrl-C came between the token and the item
                    line.leave(task)
            raise
        finally:
            self._busy -= 1
            self.tell_feeder()

    async def begin(self) -> None:
        """Look for a cancellation, and start a slice of time for the run if there is none."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._yield_at = perf_counter() + SLICE

    async def _breathe(self, checkpoint: Callable[[], Awaitable[None]]) -> None:
        """A checkpoint, which starts a new slice of time for the run if it is the first one back."""
        slice_end = self._yield_at
        await checkpoint()
        # All workers that wait here come back in one batch. Only the first gets the run a new slice, or forty of them
        # would take forty slices before any other task has its turn.
        if self._yield_at == slice_end:
            self._yield_at = perf_counter() + SLICE

    async def _breathe_between_items(self) -> None:
        self._seeking += 1
        try:
            await self._breathe(trio.lowlevel.checkpoint)
        finally:
            self._seeking -= 1

    @trio.lowlevel.enable_ki_protection
    async def _wait_to_be_hired(self, task: Task) -> None:
        def abort(_: RaiseCancelT) -> Abort:
            self._idle.remove(task)
            self._busy += 1  # nobody hired it: it comes back by itself, to leave
            self._seeking += 1
            return trio.lowlevel.Abort.SUCCEEDED

        self._busy -= 1
        self._idle.append(task)
        self.tell_feeder()
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._seeking -= 1

    async def _wait_in(self, line: Line, entry: tuple[int, T]) -> bool:
        """Wait for a token to run an item with. False if it is not to be started any more."""
        start = False
        try:
            start = await line.wait(entry[0], got_token=self.hire)  # there may be more tokens than before
        finally:
            if not start:
                self._sink.cancelled(*entry)
        return start

    def _follow(self, line: Line) -> None:
        """Have as many workers as there may be tokens now."""
        if not self.stopped:
            self._bound = line.workers()

    def _failed(self, index: int, item: T, exc: Exception) -> object:
        if type(exc) is NotAwaitable:
            # The caller's mistake, and no failure of this item.
            self._sink.cancelled(index, item)
            msg = f"{trio.lowlevel.current_task().name}: {exc}"
            raise TypeError(msg) from None
        secondary = False
        if trio.current_effective_deadline() == -math.inf:
            # A failure that came out of the run's cancellation must not be taken for its cause.
            secondary = _holds_cancelled(exc)
            self._yield_at = 0.0  # the workers should notice before they take another item
        # Without the frame of the worker: of no use to a reader, and a way from the exception to the whole run.
        tb = exc.__traceback__
        return self._sink.failed(index, item, exc.with_traceback(tb and tb.tb_next), secondary=secondary)

    def note_stray(self, exc: BaseException) -> None:
        """Keep a cancellation that Trio knows nothing of: an item or a source raised what it got elsewhere.

        The nursery takes it for its own, cancels itself and swallows it. The run would look as if it were complete.
        """
        if is_cancelled(exc) and trio.current_effective_deadline() != -math.inf:
            self._stray = exc

    def take_stray(self) -> BaseException | None:
        """What `note_stray` kept, once."""
        stray, self._stray = self._stray, None
        return stray

    def _keep_failure(self, index: int, item: T, group: BaseExceptionGroup[BaseException]) -> BaseException:
        """Record the failure in a group that mixes it with a cancellation; returns what is to be raised."""
        cancelled, rest = group.split(trio.Cancelled)
        failure = cast("object", rest)
        if cancelled is None or not isinstance(failure, Exception):
            self._sink.cancelled(index, item)
            return group  # a cancellation alone, or something like KeyboardInterrupt: no failure
        self._failed(index, item, failure)
        return cancelled


def _call_with_timeout(fn: Callable[[T], Awaitable[R]], timeout: float, item: T) -> Awaitable[R]:
    deadline = trio.current_time() + timeout
    awaitable = fn(item)
    check_awaitable(awaitable)
    return _finish_by(deadline, awaitable)


async def _finish_by(deadline: float, awaitable: Awaitable[R]) -> R:
    """Await with a deadline; raise `trio.TooSlowError` if it passed.

    It is `trio.fail_at` without its context manager, which breaks on an exception with read-only attributes.
    """
    with trio.CancelScope(deadline=deadline):
        return await awaitable
    raise trio.TooSlowError  # only reached when the scope caught its own cancellation


def same_context(a: contextvars.Context, b: contextvars.Context) -> bool:
    """Whether two contexts hold the same variables with the same objects.

    Not by `==`, which calls that of the values: it can raise, and can hold for two different lists.
    """
    return len(a) == len(b) and all(map(is_, a, b)) and all(map(is_, a.values(), b.values()))


def _holds_cancelled(exc: BaseException) -> bool:
    """Whether `exc` came out of a cancellation: each of a group's members must have."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, trio.Cancelled):
            return True
        if is_group(link) and (link.subgroup(trio.Cancelled) or all(map(_holds_cancelled, link.exceptions))):
            return True
        link = link.__context__
    return False
