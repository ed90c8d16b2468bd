"""The loop: workers that take items from a source and run a function on them, under a limiter.

A `Run` is given all it works with: the function, the source, a sink that is told of each success and each failure and
says whether to cancel, and the tokens. It keeps no results and knows no policy. `map`, `stream`, `open_group` and
`run_graph` differ in what they give it, and enter it as one enters a nursery.

Workers are tasks, and are reused: a worker runs its item and takes the next one itself. The life of a worker, as
`Run._work` has it::

    let other tasks run, if it is time -> take an item -> wait to start, if need be -> run it -> tell the sink -> again
                                            | none
                                            +-> exit, or wait in `_idle` while items may still arrive

**Who starts a worker.** `start_workers`. It is called as the run is entered, by a worker that takes an item (unless all
are at work) or has waited for its token, and by what puts an item into a queue or makes room in a window. Besides, a
worker that cannot be used again is replaced.

**What ends a run.** The source: it is not open, and a worker or its reader finds that nothing is left (`source_ended`).
The sink: it gives a reason to cancel (`cancel`). The owner: by `stop`, by `cancel`, or by an exception of the block. A
worker that raises (`_keep_exception`): it was cancelled, the source raised, there was Ctrl-C or wrong use. Each of
these sets `_max_workers` to 0. Workers exit when they next look at it, so that no item is taken or asked for any more.

**What is counted.** Three numbers, and the lot in which workers idle:

- `_workers`: tasks that were started and have not ended. Up in `_start_worker`, down in `_end_worker`.
- `taken`: items that workers have taken. Set in `_work`, where an item is taken.
- `_finished`: items that were taken and have ended in some way. Up in `_work`, where an item ends, and in
  `_wait_to_start`, for one that never starts.

So ``taken - _finished`` items are *unfinished*: they run, or wait to start. ``_workers - len(_idle)`` workers are
*awake*. Those that are awake and have no item, ``_workers - len(_idle) - (taken - _finished)``, are *coming*: each will
soon look for an item, or exit. To start a worker for each item that is ready, less those that are
coming, never starts too few. It starts too many where a worker that has just finished takes an item that another one
is coming for: that one finds nothing, and idles or exits.

**Why a worker exits only while more are awake than the limit allows.** Idle workers do not count. If they did, the last
one awake could exit while others are asleep, and nothing would wake those.

**Why an item is taken before its token.** Items start in the order of the source, and Trio's limiter is first come,
first served. If a worker waited for a token first, another could overtake it on the way to the source. As it is, an
item is in the queue for tokens as soon as it is taken. The price: items may be taken that cannot start yet, one for
each worker.

**Why one flat loop.** A coroutine for each item or slice would cost 0.03 of a checkpoint an item. And on one page a
reader sees all that happens to an item.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import attrs
import trio

from .._arguments import NotAwaitable, check_awaitable
from .exceptions import is_cancelled, raise_unchanged
from .items import (
    COROUTINE,
    came_out_of_cancellation,
    close_nurseries,
    split_failure,
    switch_context,
    watch,
    with_timeout,
    without_worker,
)
from .nursery import SingleExceptionNursery, leave
from .slices import Slice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from trio.lowlevel import Task

    from .limits import Tokens
    from .sources import FedQueue, Source

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)

COMING = 64
"""How many workers may be coming at a time, at the start of a run, of jobs, and after a wait for tokens.

A worker that takes an item allows as many as there are unfinished items. So they double, and thousands are there within
a few turns of Trio's loop. To start them all in one go would keep other tasks waiting, and functions that never wait
would leave nothing for most of them to do.
"""


class Sink(Protocol[T_contra, R_contra]):
    """Where the outcomes of items go."""

    def succeeded(self, index: int, item: T_contra, value: R_contra, /) -> str | None:
        """Called for an item that returned. Gives a reason to cancel the run, or None."""

    def failed(self, index: int, item: T_contra, exc: Exception, /, *, secondary: bool) -> str | None:
        """Called for an item that failed; `secondary` if that came out of a cancellation. Answers like `succeeded`."""

    def cancelled(self, index: int, item: T_contra, /) -> None:
        """Called for an item that was cancelled, or that will never start."""

    def label(self, index: int, /) -> str:
        """What an item is called in messages: ``item 3``."""
        ...

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the run raises, or None, when all tasks have ended.

        `leaving` is what it would raise if there were no failures; `started` is how many items were started; `complete`
        tells whether all items were taken and each has succeeded or failed.
        """


@attrs.define(eq=False, init=False)
class Run(Generic[T, R]):
    """One run of the loop: an async context manager around a nursery of workers.

    The methods that start, wake and end workers are protected from Ctrl-C, as in Trio: interrupted halfway, they could
    leave a task asleep forever. What runs the items is not protected.
    """

    _fn: Callable[[T], Awaitable[R]]
    _source: Source[T]
    _sink: Sink[T, R]
    _tokens: Tokens
    _limit_changes: bool  # whether the limiter may change during the run: it is shared, or shown to the user
    _move_on_after: float | None  # seconds until the run is cancelled
    _name: str  # of the worker tasks
    _nursery: SingleExceptionNursery
    _slice: Slice
    # 0 if no item is to be taken any more. Otherwise the limit as last seen, at least 1; or the number of items, if the
    # limit does not change and there are less.
    _max_workers: float
    _workers: int  # tasks that were started and have not ended
    taken: int  # items that were taken
    _finished: int  # items that were taken and have ended
    _idle: trio.lowlevel.ParkingLot  # workers that found no item, while some may still arrive
    stopped: bool  # no further item is started, though there may be some
    _exhausted: bool  # the source has ended, and all its items were taken
    _lost: bool  # an item has ended without an outcome, or will not start

    def __init__(
        self,
        fn: Callable[[T], Awaitable[R]],
        source: Source[T],
        sink: Sink[T, R],
        tokens: Tokens,
        name: str,
        *,
        item_timeout: float | None = None,
        move_on_after: float | None = None,
        limiter_shown: bool = False,
    ) -> None:
        self._fn = fn if item_timeout is None else with_timeout(fn, item_timeout)
        self._source = source
        self._sink = sink
        self._tokens = tokens
        self._limit_changes = tokens.shared or limiter_shown
        self._move_on_after = move_on_after
        self._name = name
        self._nursery = SingleExceptionNursery()
        self._slice = Slice()
        self._max_workers = tokens.workers
        if source.length and not source.workers_wait and not self._limit_changes:
            self._max_workers = min(self._max_workers, source.length)  # more would find nothing: don't look for them
        self._workers = self.taken = self._finished = 0
        self._idle = trio.lowlevel.ParkingLot()
        self.stopped = self._exhausted = self._lost = False

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Run[T, R]:
        """Open the nursery, and start the first workers."""
        await self._nursery.open()
        if self._move_on_after is not None:
            self.cancel_scope.deadline = trio.current_time() + self._move_on_after
        self.start_workers(COMING)
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        """Wait until all workers have ended; raise what the sink says."""
        if exc is not None:
            self._start_no_more()
        try:
            leaving = await self._nursery.close(exc)
            self.discard()  # what was put in after the run had been stopped, or if Ctrl-C ended the last worker
            leaving = self._sink.conclude(leaving, self.started(), complete=self._exhausted and not self._lost)
            return leave(leaving, exc)
        finally:
            # This frame is in the traceback of what is raised, and of each Cancelled, which may be part of a chain.
            leaving = None
            del exc, tb

    # What the owner does

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the block and all workers."""
        scope = self._nursery.cancel_scope
        assert scope is not None
        return scope

    @trio.lowlevel.enable_ki_protection
    def start_workers(self, most: int = 1) -> None:
        """Wake or start workers for the items that are ready, up to the limit, and until `most` are coming."""
        unfinished = self.taken - self._finished
        coming = self._workers - len(self._idle) - unfinished
        if coming >= most:
            return
        if self._limit_changes and self._tokens.limiter.total_tokens != self._tokens.total:
            self._follow_limit()
        room = self._max_workers - unfinished
        if coming >= room:
            return
        count = int(min(self._source.ready(self.taken), most, room)) - coming
        if count <= 0:
            return
        if self._idle:
            count -= len(self._idle.unpark(count=count))
        for _ in range(count):
            self._start_worker()

    def _start_worker(self) -> None:
        self._nursery.start_soon(self._guarded_work if self._source.fed else self._work, name=self._name)
        self._workers += 1

    def room_freed(self) -> None:
        """Wake the reader of the source, and a worker: there may be room for another item."""
        self._source.wake_reader()
        self.start_workers()

    @trio.lowlevel.enable_ki_protection
    def source_ended(self) -> None:
        """Have workers exit: all items were taken, and no more arrive."""
        self._exhausted = True
        self._max_workers = 0
        if self._idle:
            self._idle.unpark_all()

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """Start no further item; let those that run finish."""
        if self.stopped:
            return
        self._start_no_more()
        self._source.stop()
        self._idle.unpark_all()

    @trio.lowlevel.enable_ki_protection
    def cancel(self, reason: str) -> None:
        """Start no further item, and cancel those that run."""
        self._start_no_more()
        self._nursery.cancel(reason)

    @trio.lowlevel.enable_ki_protection
    def discard(self) -> None:
        """Discard items that were put in and will never start."""
        for index, item in self._source.drop():
            self._give_up(index, item)

    def _start_no_more(self) -> None:
        if self.stopped:
            return  # once is enough, and each worker that is cancelled comes here
        self.stopped = True
        self._max_workers = 0
        self._tokens.turn_away()
        self.discard()

    async def look_for_cancellation(self) -> None:
        """Look for a cancellation before anything is read."""
        await self._slice.next()

    @trio.lowlevel.enable_ki_protection
    async def wait_for_room(self, source: FedQueue[T]) -> bool:
        """Wait until a worker is free and the source not full. False once no more items are to be read."""
        if perf_counter() >= self._slice.end:
            await self._slice.next(trio.lowlevel.cancel_shielded_checkpoint)  # shielded: see below
        while self._max_workers and (self.unfinished() + source.ready() >= self._max_workers or source.is_full()):
            # Shielded, because a cancel scope that an async source holds open may surround this wait, and its
            # Cancelled should be raised inside of the source, where the scope can catch it. Cancelling the run itself
            # ends the workers, and the first of them to exit wakes this (`_guarded_work`).
            with trio.CancelScope(shield=True):
                await source.reader.park()
        return bool(self._max_workers)

    # What tells how it goes

    def started(self) -> int:
        """How many items were started."""
        return self.taken - len(self._tokens.unstarted)

    def was_started(self, index: int) -> bool:
        """Whether an item had been started when the run was over."""
        return index < self.taken and index not in self._tokens.unstarted

    def unfinished(self) -> int:
        """How many items were taken and have not ended."""
        return self.taken - self._finished

    def running(self) -> int:
        """How many items are at work."""
        return self.unfinished() - self._tokens.queued

    # What a worker does

    @trio.lowlevel.enable_ki_protection
    async def _guarded_work(self) -> None:
        """A worker for an async source: however it ends, even before its first line, it wakes the reader."""
        ended = False
        try:
            await self._work()
            ended = True
        finally:
            if not ended:
                self._start_no_more()
            self._source.wake_reader()

    @trio.lowlevel.disable_ki_protection  # also inside of `_guarded_work`: it runs the items
    async def _work(self) -> None:
        """Run items, one after another, until there are none for this worker."""
        replace = False
        try:
            task = trio.lowlevel.current_task()
            fn, source, sink, slice_, tokens = self._fn, self._source, self._sink, self._slice, self._tokens
            take, succeeded = source.take, sink.succeeded
            context, context_of, workers_wait = source.context, source.context_of, source.workers_wait
            limiter, shared, unstarted = tokens.limiter, tokens.shared, tokens.unstarted
            limit_changes = self._limit_changes
            watched = watch(task)
            status = watched._cancel_status  # noqa: SLF001  # see `watch`
            has_token = starts_at_once = False
            if workers_wait and slice_.end and self.cancel_scope.cancel_called:
                slice_.end_now()  # cancelled after this worker was started: it looks for that before it takes an item
            while True:
                if (context or task.context) and context_of is None and switch_context(task, context):
                    await slice_.next(trio.lowlevel.checkpoint)  # the last item has set a context variable
                while perf_counter() >= slice_.end:
                    await slice_.next()
                if limit_changes and (tokens.overdrawn or limiter.total_tokens != tokens.total):
                    self._follow_limit()
                    if tokens.overdrawn:
                        tokens.put_back(task)  # which a worker that was idle may hold, too
                    has_token = tokens.holds(task)
                    starts_at_once = has_token and context_of is None
                # The first comparison is there to save the second one: `len` of a lot is a call.
                if self._workers > self._max_workers and self._workers - len(self._idle) > self._max_workers:
                    return  # the limit is lower than it was, or no item is to be taken any more
                # No checkpoint from here until the item has started or is in the queue, so that items start in order.
                entry = take()
                if entry is None:
                    if not source.open:
                        self.source_ended()
                        return
                    if context_of is not None:
                        task.context = context.copy()  # an idle worker keeps nothing alive that an item has set
                    source.wake_reader()
                    await self._idle.park()
                    continue
                index, item = entry
                self.taken = index + 1
                if self._workers != self._max_workers or (workers_wait and self._idle):
                    if self.stopped:  # by the source itself, as it gave this item: then `_max_workers` is 0
                        self.taken = index
                        self._give_up(index, item)
                        return
                    self.start_workers(self.taken - self._finished)
                if unstarted or not starts_at_once:
                    may_start = not unstarted and (has_token or tokens.borrow(task))
                    if context_of is not None and switch_context(task, context_of(item)):
                        may_start = False  # until the next step of the task
                    if not (may_start or await self._wait_to_start(task, index, item)):
                        return
                    has_token = not shared
                    starts_at_once = has_token and context_of is None
                try:
                    awaitable = fn(item)
                    if type(awaitable) is not COROUTINE:
                        check_awaitable(awaitable)
                    value = await awaitable
                except Exception as exc:  # noqa: BLE001  # that is what a failure is
                    left_open = watched._cancel_status is not status  # noqa: SLF001
                    reason = self._failed(index, item, exc, own_scope=left_open and not status.effectively_cancelled)
                except BaseException as exc:  # noqa: ASYNC103  # raised again, but for what is a failure in it
                    left_open = watched._cancel_status is not status  # noqa: SLF001
                    if type(exc) is trio.Cancelled and not left_open:
                        self._give_up(index, item)
                        raise
                    own_scope = left_open and not status.effectively_cancelled
                    reason = await self._interrupted(task, index, item, exc, own_scope=own_scope)
                else:
                    reason = succeeded(index, item, value)
                finally:
                    self._finished += 1
                    if shared:
                        tokens.put_back(task)
                if reason is not None:
                    # Outside of the `except` block: each task's Cancelled would have the failure as its context.
                    self.cancel(reason)
                # Drop references: an idle worker must not keep the last item alive, and a failure must not be reachable
                # from its own traceback.
                entry = item = awaitable = value = None  # type: ignore[assignment]
                if watched._cancel_status is not status:  # noqa: SLF001
                    await self._close_nurseries(task, index)
                    replace = True
                    return  # what the item left open ends with this task
        except BaseException as exc:  # noqa: ASYNC103  # kept, or raised again
            if not self._keep_exception(exc):
                raise
        finally:
            self._end_worker(replace=replace)

    @trio.lowlevel.enable_ki_protection
    def _keep_exception(self, exc: BaseException) -> bool:
        """Keep what has ended a worker, and cancel the run. False if it is to be raised into the nursery.

        It is a cancellation, a KeyboardInterrupt, what the source raised, or wrong use.
        """
        try:
            self._start_no_more()  # the other workers might not come to a checkpoint soon
            return self._nursery.keep(exc, f"a worker raised {type(exc).__name__}")
        finally:
            del exc  # this frame is in the traceback of what the other workers raise now

    @trio.lowlevel.enable_ki_protection
    def _end_worker(self, *, replace: bool) -> None:
        """Put back the worker's token, count it out, and have another one in its place if it is to be replaced."""
        self._tokens.put_back(trio.lowlevel.current_task())
        self._workers -= 1
        if replace and self._max_workers:
            self._start_worker()  # also where no item is ready: a worker has to find out that the source has ended

    def _follow_limit(self) -> None:
        """Have as many workers as the limiter has tokens now."""
        self._tokens.look()
        if self._max_workers:
            self._max_workers = self._tokens.workers

    @trio.lowlevel.enable_ki_protection
    async def _wait_to_start(self, task: Task, index: int, item: T) -> bool:
        """Wait for a token, and until the items before this one have started. False if it is not to be started."""
        if not self._tokens.shared and not self._tokens.holds(task):
            self._idle.unpark_all()  # idle workers may hold tokens that the limiter has no more: they put them back
        start = False
        try:
            start = await self._tokens.wait(task, index)
        finally:
            if not start:
                self._finished += 1
                self._give_up(index, item)
        # There may be more tokens than before, and this item may take long.
        self._source.wake_reader()
        self.start_workers(COMING)
        return start

    def _give_up(self, index: int, item: T) -> None:
        self._lost = True
        self._sink.cancelled(index, item)

    def _failed(self, index: int, item: T, exc: Exception, *, own_scope: bool = False) -> str | None:
        """Record a failure; see `_interrupted`. Gives the sink's reason to cancel the run."""
        if type(exc) is NotAwaitable:
            # The caller's mistake, and no failure of this item.
            self._give_up(index, item)
            msg = f"{trio.lowlevel.current_task().name}: {exc}"
            raise TypeError(msg) from None
        secondary = False
        if not own_scope and trio.current_effective_deadline() == -math.inf:
            # A failure that came out of the run's cancellation must not be taken for its cause.
            secondary = came_out_of_cancellation(exc)
            self._slice.end_now()  # the workers should notice before they take another item
        return self._sink.failed(index, item, without_worker(exc), secondary=secondary)

    async def _interrupted(self, task: Task, index: int, item: T, exc: BaseException, *, own_scope: bool) -> str | None:
        """Record what is a failure in `exc`, and raise the rest of it.

        With `own_scope`, a cancellation in it came from a scope that the item left open, and not from around the run.
        """
        failure, rest = split_failure(exc)
        if own_scope and rest is not None and is_cancelled(rest):
            rest = None
            if failure is None:
                msg = "cancelled by a cancel scope that this item left open; loop over async generators in `aclosing`"
                failure = RuntimeError(msg)
        try:
            if failure is None:
                self._give_up(index, item)
                reason = None
            else:
                reason = self._failed(index, item, failure)
            if rest is not None:
                await self._close_nurseries(task, index)
                raise_unchanged(rest)
            return reason
        finally:
            del exc, rest, failure  # this frame is in the traceback of what is raised

    @trio.lowlevel.enable_ki_protection
    async def _close_nurseries(self, task: Task, index: int) -> None:
        """Deal with a nursery that an item left open: wrong use, under every policy."""
        if not task.child_nurseries:
            return
        self._start_no_more()
        msg = f"{self._sink.label(index)} left a nursery open: leave its `async with` block before the function returns"
        self._nursery.keep(RuntimeError(msg), "an item left a nursery open")
        await close_nurseries(task)
