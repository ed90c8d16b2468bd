"""A run: workers that take items from a source and run a function on them, under a limiter.

A `Run` is given all it works with: the function, the source, a sink that is notified of each success and each failure
and says whether to cancel, and the tokens. It keeps no results and knows no policy. `map`, `stream`, `open_group` and
`run_graph` differ in what they give it. Whichever of them makes a run is its *owner*, and enters it as one enters a
nursery.

**The simple alternative** is a task for each item, in a nursery, with a limiter. It is 600 lines shorter, and costs
40 µs per item. This costs 0.35 µs. Here workers are tasks, and are reused: a worker runs its item and takes the next
one itself. The price is that what Trio does for a task has to be done for an item: context variables, cancel scopes
that were left open, references that must not stay, a turn for other tasks now and then.

Three modules do the work:

- `crew`: who works, and who may start;
- `ending`: how a run ends;
- `loop`: what one worker does.

The life of a worker, as `Loop._work` has it::

    let other tasks run, if it is time -> take an item -> wait to start, if need be -> run it -> tell the sink -> again
                                            | none
                                            +-> exit, or idle while items may still arrive

**Who starts a worker.** `Crew.wake_or_start` does. It is called as the run is entered, by a worker that takes an item
(unless as many as are allowed are running) or that has waited for a token, by whatever puts an item into a queue, and
by a stream whose reader has made room for another item. In addition, a worker that cannot be used again is replaced.

**Who wakes whom.** Idle workers are woken by `Crew.wake_or_start`, and all of them at the end of the run. The task that
reads an async source (`feed`) is woken by a worker that has found no item or taken one, and by whatever makes room: a
result that was read, a limit that rises, the end. An item that waits for a token is woken by the limiter, and then by
the item before it (`Tokens`). A task that waits for its slice of time is woken by one that has waited before it
(`Slice`).

**What ends a run.** Its source is exhausted, its owner stops it, or something cancels it (`End`). The first of these is
kept, and no more items are taken. Workers exit when they next look.

**Why a worker exits only while more are awake than the limit allows.** Idle workers do not count. If they did, the last
one awake could exit while others are asleep, and nothing would wake those.

**Why an item is taken before its token.** Items start in the order of the source, and Trio's limiter is first come,
first served. If a worker waited for a token first, another could overtake it on the way to the source. As it is, an
item is in the queue for tokens as soon as it is taken. The price: items may be taken that cannot start yet, one for
each worker.

**Why one flat loop.** A coroutine for each item or slice would cost a tenth of a microsecond, a third of what the loop
costs. And on one page a reader sees all that happens to an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from .._protection import protected
from .crew import CANCELLED, EXHAUSTED, MAX_COMING, STOPPED, Crew
from .ending import Ending, Sink
from .items import with_timeout
from .loop import Loop
from .nursery import SingleExceptionNursery, most_important, raise_or_return, reserve

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from .limits import Tokens
    from .sources import FedQueue, Source

T = TypeVar("T")
R = TypeVar("R")


@protected()
class Run(Generic[T, R]):
    """One run: an async context manager around a nursery of workers.

    Args:
        fn: what is run on each item.
        source: where the items come from.
        sink: what is told of their outcomes.
        tokens: how many may run at once.
        name: the name of the worker tasks.
        item_timeout: seconds that each item may take.
        move_on_after: seconds until the run is cancelled.
        limiter_shown: whether the user can see the limiter, and so change it.
    """

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
        self._source = source
        self._sink = sink
        self._tokens = tokens
        self._move_on_after = move_on_after
        self._nursery = SingleExceptionNursery()
        self._crew = Crew(source, tokens, self._nursery, name, limiter_shown=limiter_shown)
        self._ending = Ending(source, sink, tokens, self._crew, self._nursery)
        if item_timeout is not None:
            fn = with_timeout(fn, item_timeout)
        self._loop = Loop(fn, source, sink, tokens, self._crew, self._ending)

    async def __aenter__(self) -> Run[T, R]:
        """Open the nursery, and start the first workers."""
        await self._nursery.open()
        if self._move_on_after is not None:
            self.cancel_scope.deadline = trio.current_time() + self._move_on_after
        self.start_workers(MAX_COMING)
        return self

    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        """Wait until all workers have ended; raise what the sink says."""
        raised: list[BaseException | None] = []
        try:
            if exc is not None:
                self._ending.start_no_more(CANCELLED)
            raised.append(await self._nursery.close(exc))
            raised.append(await self._ending.abandoned_ended())
            raised.append(self._close_source())
            # Items were put into the queue after the run had ended, or Ctrl-C ended the last worker.
            self._ending.drop_queued()
            leaving = self._sink.conclude(most_important(raised), self.started(), complete=self._ending.complete())
            return raise_or_return(leaving, exc)
        finally:
            raised.clear()
            leaving = None
            del exc, tb  # see `exceptions`

    def _close_source(self) -> BaseException | None:
        """Close the source. Returns what that raises."""
        try:
            self._source.close()
        except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised, or chained to what is raised
            return exc  # noqa: ASYNC104
        return None

    # What the owner does

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the block and all workers."""
        scope = self._nursery.cancel_scope
        assert scope is not None
        return scope

    def start_workers(self, at_most: int = 1) -> None:
        """Wake or start workers for the items that are ready; see `Crew.wake_or_start`."""
        self._crew.wake_or_start(self._loop.worker, at_most)

    def room_freed(self) -> None:
        """Wake the reader of the source, and a worker: there may be room for another item."""
        self._source.wake_feeder()
        self._crew.wake_or_start(self._loop.worker)

    def source_ended(self) -> None:
        """Have workers exit: all items were taken, and no more arrive."""
        self._ending.note_exhausted()

    def stop(self) -> None:
        """Start no further item; let those that run finish."""
        reserve()
        self._ending.stop()

    def cancel(self, reason: str) -> None:
        """Start no further item, and cancel those that run."""
        reserve()
        self._ending.cancel(reason)

    def drop_queued(self) -> None:
        """Discard items that were put into the source and will never start."""
        self._ending.drop_queued()

    async def wait_for_room(self, source: FedQueue[T]) -> bool:
        """Wait until a worker is free and the source not full. False once no more items are to be read."""
        crew, slice_ = self._crew, self._loop.slice
        if slice_.now() >= slice_.end:
            await slice_.pause()  # see below
        while crew.ended is None:
            if crew.limit_changes:
                crew.look_at_limit()
            if crew.taken - crew.finished + source.ready() < crew.max_awake and not source.is_full():
                return True
            # Shielded, because a cancel scope that an async source holds open may surround this wait, and its
            # Cancelled should be raised inside the source, where the scope can catch it. Cancelling the run itself
            # ends the workers, and the first of them to exit wakes this (`Loop._guarded_work`).
            with trio.CancelScope(shield=True):
                await source.feeder.park()
        return False

    # How it is going

    @property
    def ended_early(self) -> bool:
        """Whether it was stopped or cancelled before its source was exhausted."""
        return self._crew.ended not in (None, EXHAUSTED)

    @property
    def stopped(self) -> bool:
        """Whether the owner has stopped it before anything else ended it."""
        return self._crew.ended is STOPPED

    def started(self) -> int:
        """How many items were started."""
        return self._crew.taken - len(self._tokens.never_started)

    def was_started(self, index: int) -> bool:
        """Whether an item had been started when the run was over."""
        return index < self._crew.taken and index not in self._tokens.never_started

    def count(self) -> int:
        """How many items there are. If the run ended before its source, those that the source promised count, too."""
        seen = self._source.seen(self._crew.taken)
        return seen if self._crew.ended is EXHAUSTED else max(seen, self._source.length or 0)

    def unfinished(self) -> int:
        """How many items were taken and have not ended."""
        return self._crew.unfinished()

    def running(self) -> int:
        """How many items are running."""
        return self.unfinished() - len(self._tokens.waiting)
