"""A run: workers that take items from a source and run a function on them, under a limiter.

A `Run` is given all it works with: the function, the source, a sink that is told of each success and each failure and
says whether to cancel, and the tokens. It keeps no results and knows no policy. `map`, `stream`, `open_group` and
`run_graph` differ in what they give it, and enter it as one enters a nursery.

**What it is instead of.** A task for each item, in a nursery, with a limiter: 600 lines less, and 40 µs per item
instead of 0.35. Here workers are tasks, and are reused: a worker runs its item and takes the next one itself. The price
is that what Trio does for a task has to be done for an item: context variables, cancel scopes that were left open,
references that must not stay, a turn for other tasks now and then.

Behind this room are three halls:

- `crew`: who works, and who may start;
- `ending`: how a run ends;
- `loop`: what one worker does.

The life of a worker, as `Loop._work` has it::

    let other tasks run, if it is time -> take an item -> wait to start, if need be -> run it -> tell the sink -> again
                                            | none
                                            +-> exit, or idle while items may still arrive

**Who starts a worker.** `Crew.start`. It is called as the run is entered, by a worker that takes an item (unless all
are running) or has waited for its token, and by what puts an item into a queue or makes room in a window. Besides, a
worker that cannot be used again is replaced.

**What ends a run.** Its source is exhausted, its owner stops it, or something cancels it (`End`). The first of these is
kept, and no item is taken any more. Workers exit when they next look.

**Why a worker exits only while more are awake than the limit allows.** Idle workers do not count. If they did, the last
one awake could exit while others are asleep, and nothing would wake those.

**Why an item is taken before its token.** Items start in the order of the source, and Trio's limiter is first come,
first served. If a worker waited for a token first, another could overtake it on the way to the source. As it is, an
item is in the queue for tokens as soon as it is taken. The price: items may be taken that cannot start yet, one for
each worker.

**Why one flat loop.** A coroutine for each item or slice would cost 0.03 checkpoints per item. And on one page a reader
sees all that happens to an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from .._protection import protected
from .crew import CANCELLED, COMING, EXHAUSTED, STOPPED, Crew
from .ending import Ending
from .items import with_timeout
from .loop import Loop
from .nursery import SingleExceptionNursery, leave, most_important
from .scopes import tasks_ended
from .sources import FedQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from .limits import Tokens
    from .sinks import Sink
    from .sources import Source

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
        self._loop = Loop(fn, source, sink, tokens, self._crew, self._ending, isinstance(source, FedQueue))

    async def __aenter__(self) -> Run[T, R]:
        """Open the nursery, and start the first workers."""
        await self._nursery.open()
        if self._move_on_after is not None:
            self.cancel_scope.deadline = trio.current_time() + self._move_on_after
        self.start_workers(COMING)
        return self

    async def __aexit__(
        self,
        etype: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        """Wait until all workers have ended; raise what the sink says."""
        try:
            if exc is not None:
                self._crew.dismiss(CANCELLED)
            leaving = await self._nursery.close(exc)
            if self._ending.abandoned:
                await tasks_ended(self._ending.abandoned)
            self._ending.discard()  # what was put in after the run had ended, or if Ctrl-C ended the last worker
            leaving = self._close_source(leaving)
            leaving = self._sink.conclude(leaving, self.started(), complete=self._ending.complete())
            return leave(leaving, exc)
        finally:
            leaving = None
            del exc, tb  # see `exceptions`

    def _close_source(self, leaving: BaseException | None) -> BaseException | None:
        """Close the source, and choose what the run would raise if there were no failures."""
        try:
            self._source.close()
        except BaseException as exc:  # noqa: BLE001  # raised, or chained to what is raised
            return exc if leaving is None else most_important([leaving, exc])
        else:
            return leaving
        finally:
            del leaving  # see `exceptions`

    # What the owner does

    @property
    def cancel_scope(self) -> trio.CancelScope:
        """The scope around the block and all workers."""
        scope = self._nursery.cancel_scope
        assert scope is not None
        return scope

    def start_workers(self, at_most: int = 1) -> None:
        """Wake or start workers for the items that are ready; see `Crew.start`."""
        self._crew.start(self._loop.worker(), at_most)

    def room_freed(self) -> None:
        """Wake the reader of the source, and a worker: there may be room for another item."""
        self._source.wake_reader()
        self.start_workers()

    def source_ended(self) -> None:
        """Have workers exit: all items were taken, and no more arrive."""
        self._ending.exhausted()

    def stop(self) -> None:
        """Start no further item; let those that run finish."""
        self._ending.stop()

    def cancel(self, reason: str) -> None:
        """Start no further item, and cancel those that run."""
        self._ending.cancel(reason)

    def discard(self) -> None:
        """Discard items that were put into the source and will never start."""
        self._ending.discard()

    async def wait_for_room(self, source: FedQueue[T]) -> bool:
        """Wait until a worker is free and the source not full. False once no more items are to be read."""
        crew = self._crew
        if self._loop.slice.over():
            await self._loop.slice.next(shielded=True)  # see below
        while crew.ended is None and (crew.unfinished() + source.ready() >= crew.most or source.is_full()):
            # Shielded, because a cancel scope that an async source holds open may surround this wait, and its
            # Cancelled should be raised inside the source, where the scope can catch it. Cancelling the run itself
            # ends the workers, and the first of them to exit wakes this (`Loop._guarded_work`).
            with trio.CancelScope(shield=True):
                await source.reader.park()
        return crew.ended is None

    # How it is going

    @property
    def stopped(self) -> bool:
        """Whether no further item is started, though there may be some."""
        return self._crew.ended not in (None, EXHAUSTED)

    @property
    def was_stopped(self) -> bool:
        """Whether that is because the owner has stopped it."""
        return self._crew.ended is STOPPED

    def started(self) -> int:
        """How many items were started."""
        return self._crew.taken - len(self._tokens.waiting) - len(self._tokens.never_started)

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
