"""What a worker does: the loop that runs all items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
import trio

from .._arguments import check_awaitable
from .._protection import protected
from .crew import CANCELLED, MAX_COMING
from .exceptions import is_cancelled, raise_unchanged
from .items import COROUTINE, came_out_of_cancellation, split_failure, switch_context, without_worker
from .scopes import Scopes
from .slices import current_slice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

    from .crew import Crew, Work
    from .ending import Ending, Sink
    from .limits import Tokens
    from .slices import Slice
    from .sources import Source

T = TypeVar("T")
R = TypeVar("R")


@protected(but="_work")
@attrs.define(eq=False)
class Loop(Generic[T, R]):
    """The loop that each worker runs, and all that it works with."""

    _fn: Callable[[T], Awaitable[R]]
    _source: Source[T]
    _sink: Sink[T, R]
    _tokens: Tokens
    _crew: Crew
    _ending: Ending
    slice: Slice = attrs.field(factory=current_slice)

    def worker(self) -> Work:
        """What the task of a worker runs."""
        # Not always the first: a coroutine around another one costs whatever waits inside.
        return self._guarded_work if self._source.fed else self._work

    async def _guarded_work(self) -> None:
        """A worker for a source that a task reads: however it ends, even before its first line, it wakes that task."""
        ended = False
        try:
            await self._work()
            ended = True
        finally:
            if not ended:
                self._crew.dismiss(CANCELLED)
            self._source.wake_feeder()

    async def _work(self) -> None:
        """Run items, one after another, until there are none for this worker."""
        index = -1
        replace = False
        task = trio.lowlevel.current_task()
        try:
            fn, source, sink, tokens, crew, slice_ = (
                self._fn, self._source, self._sink, self._tokens, self._crew, self.slice,
            )  # fmt: skip
            take, succeeded, now = source.take, sink.succeeded, slice_.now
            context, context_of, idle, fed = source.context, source.context_of, crew.idle, source.fed
            limiter, shared, waiting = tokens.limiter, tokens.shared, tokens.waiting
            limit_changes = crew.limit_changes
            scopes = Scopes(task)
            watched, status = scopes.task, scopes.status
            has_token = starts_at_once = False
            await trio.lowlevel.checkpoint_if_cancelled()  # cancelled since it was started: it should take nothing
            end = slice_.end
            while True:
                if (context or task.context) and context_of is None and switch_context(task, context):
                    await trio.lowlevel.checkpoint()  # the last item has set a context variable
                while slice_.end != end or now() >= end:
                    if now() >= slice_.end:  # `slice_.over()`, without the call
                        await slice_.next(crew)
                    else:
                        # Others have begun this slice. If runs inside the items did so each time, behind a shield, this
                        # worker would never notice that its own run is cancelled.
                        await trio.lowlevel.checkpoint_if_cancelled()
                    end = slice_.end
                if limit_changes and (limiter.total_tokens != tokens.total or limiter.borrowed_tokens > tokens.total):
                    crew.follow_limit()
                    if limiter.borrowed_tokens > tokens.total:
                        tokens.put_back(task)
                    has_token = tokens.holds(task)
                    starts_at_once = has_token and context_of is None
                # Too many are awake: the limit is lower than it was, or the run has ended. The first comparison saves
                # the call.
                if crew.workers > crew.max_awake and crew.awake() > crew.max_awake:
                    return
                # No checkpoint from here until the item has started or is in the queue, so that items start in order.
                entry = take()
                if entry is None:
                    if idle is None or not source.may_grow:
                        self._ending.note_exhausted()
                        return
                    if context_of is not None:
                        task.context = context.copy()  # an idle worker keeps nothing alive that an item has set
                    if limit_changes:  # an item may wait for this token, or somebody who can see the limiter
                        tokens.put_back(task)
                        has_token = starts_at_once = False
                    source.wake_feeder()
                    await idle.park()
                    continue
                index, item = entry
                crew.taken = index + 1
                # Most often all workers that there may be are running. If not, more may start, or the run has ended.
                if crew.workers != crew.max_awake or idle:
                    if crew.ended is not None:  # by the source itself, as this item was taken
                        crew.taken = index
                        self._ending.without_outcome(index, item)
                        return
                    crew.wake_or_start(self.worker, crew.taken - crew.finished)
                    if fed and not source.ready(crew.taken):
                        source.wake_feeder()  # maybe no other worker comes that would find the queue empty
                if waiting or not starts_at_once:
                    may_start = not waiting and (has_token or tokens.borrow(task))
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
                except BaseException as exc:  # noqa: ASYNC103  # raised again, but for what is a failure in it
                    left_open = scopes.changed()
                    if type(exc) is trio.Cancelled and not left_open:  # as in `_raised`, for thousands at once
                        self._ending.without_outcome(index, item)
                        raise
                    reason = self._raised(index, item, exc, left_open=left_open, cancelled=scopes.cancelled())
                else:
                    reason = succeeded(index, item, value)
                finally:
                    crew.finished += 1
                    if shared:
                        tokens.put_back(task)
                if reason is not None:
                    # Outside the `except` block: each task's Cancelled would have the failure as its context.
                    self._ending.cancel(reason)
                # Drop references: an idle worker must not keep the last item alive, and a failure must not be reachable
                # from its own traceback.
                entry = item = awaitable = value = None  # type: ignore[assignment]
                if watched._cancel_status is not status:  # noqa: SLF001  # `scopes.changed()`, without the call
                    replace = True
                    return  # what the item left open ends with this task
        except BaseException as exc:  # noqa: ASYNC103  # kept, or raised again
            # A cancellation, a KeyboardInterrupt, what the source raised, or wrong use.
            if not self._ending.keep(exc, f"a worker raised {type(exc).__name__}"):
                raise
        finally:
            self._finish(task, index, replace=replace)

    def _finish(self, task: Task, index: int, *, replace: bool) -> None:
        """Note what the last item left open, and start another worker instead of this one if `replace` says so."""
        self._ending.check_nurseries(task, index)
        self._crew.count_out(task)
        if replace and self._crew.ended is None:
            self._crew.start_one(self.worker())

    async def _wait_to_start(self, task: Task, index: int, item: T) -> bool:
        """Wait for a token, and until the items before this one have started. False if it is not to be started."""
        if self._tokens.waiting:
            self._tokens.put_back(task)  # an earlier item may be waiting for this token
        try:
            started = await self._tokens.wait(task, index, item)
        except BaseException:
            if self._tokens.withdraw(index):
                self._ending.turned_away(index, item)
            raise
        # There may be more tokens than before, and this item may take long.
        self._source.wake_feeder()
        self._crew.wake_or_start(self.worker, MAX_COMING)
        return started

    def _raised(self, index: int, item: T, exc: BaseException, *, left_open: bool, cancelled: bool) -> str | None:
        """Record what is a failure in `exc`, and raise the rest of it. Returns the sink's reason to cancel the run.

        `left_open` says whether the item left a scope open, and `cancelled` whether it is cancelled from around it.
        """
        failure, rest = split_failure(exc)
        if left_open and not cancelled and rest is not None and is_cancelled(rest):
            rest = None
            if failure is None:
                msg = "cancelled by a cancel scope that this item left open; loop over async generators in `aclosing`"
                failure = RuntimeError(msg)
        try:
            if failure is None:
                self._ending.without_outcome(index, item)
                reason = None
            else:
                reason = self._failed(index, item, failure, cancelled=cancelled)
            if rest is not None:
                raise_unchanged(rest)
            return reason
        finally:
            del exc, rest, failure  # see `exceptions`

    def _failed(self, index: int, item: T, exc: Exception, *, cancelled: bool) -> str | None:
        secondary = False
        if cancelled:
            # A failure that came out of the run's cancellation must not be taken for its cause.
            secondary = came_out_of_cancellation(exc)
            self.slice.end_now()  # the workers should notice before they take another item
        return self._sink.failed(index, item, without_worker(exc), secondary=secondary)
