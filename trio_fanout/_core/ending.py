"""How a run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from .._protection import protected
from .crew import CANCELLED, EXHAUSTED, STOPPED
from .scopes import tasks_ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio
    from trio.lowlevel import Task

    from .crew import Crew, End
    from .limits import Tokens
    from .nursery import SingleExceptionNursery
    from .sources import Source


T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


class Sink(Protocol[T_contra, R_contra]):
    """What a run tells about its items."""

    def succeeded(self, index: int, item: T_contra, value: R_contra, /) -> str | None:
        """Called for an item that returned. Returns a reason to cancel the run, or None."""

    def failed(self, index: int, item: T_contra, exc: Exception, /, *, secondary: bool) -> str | None:
        """Called for an item that failed; `secondary` if that came out of a cancellation. Returns as `succeeded`."""

    def cancelled(self, index: int, item: T_contra, /) -> None:
        """Called for an item that was cancelled, or that will never start."""

    def label(self, index: int, /) -> str:
        """What an item is called in messages: ``item 3``."""
        ...

    def conclude(self, leaving: BaseException | None, started: int, /, *, complete: bool) -> BaseException | None:
        """Choose what the run raises, or None, when all tasks have ended.

        `leaving` is what it would raise if there were no failures; `started` is how many items were started; `complete`
        says whether all items were taken and each has succeeded or failed.
        """


@protected()
@attrs.define(eq=False)
class Ending:
    """What ends a run, and what has to be told then.

    A run ends when its source is exhausted, when its owner stops it, or when something cancels it: its sink, its owner,
    or an exception that leaves the block or a worker. The first of these is kept, as `Crew.ended`, and no item is taken
    any more.

    The source alone is no reason not to start items that were taken and wait for a token. But a run whose source is
    exhausted can still be stopped or cancelled. Then they never start.
    """

    _source: Source[Any]
    _sink: Sink[Any, Any]
    _tokens: Tokens
    _crew: Crew
    _nursery: SingleExceptionNursery
    lost: bool = False  # an item has ended without an outcome, or will not start
    _abandoned: Sequence[trio.Nursery] = ()  # those that items have left open

    def note_exhausted(self) -> None:
        """The source has ended, and all its items were taken."""
        self._crew.dismiss(EXHAUSTED)

    def stop(self) -> None:
        """Start no further item. Those that run finish."""
        self.start_no_more(STOPPED)
        self._source.stop()

    def cancel(self, reason: str) -> None:
        """Start no further item, and cancel those that run."""
        self.start_no_more(CANCELLED)
        self._nursery.cancel(reason)

    def keep(self, exc: BaseException, reason: str) -> bool:
        """Keep an exception that ends the run. False if the caller has to raise it into the nursery; see there."""
        self.start_no_more(CANCELLED)  # the other workers might not come to a checkpoint soon
        try:
            return self._nursery.keep(exc, reason)
        finally:
            del exc  # see `exceptions`

    def start_no_more(self, cause: End) -> None:
        """Let no further item start. Those that wait for a token and those in the queue end here."""
        self._crew.dismiss(cause)
        for index, item in self._tokens.turn_away():
            self.turned_away(index, item)
        self.drop_queued()

    def drop_queued(self) -> None:
        """Discard items that were put into the source and will never start."""
        for index, item in self._source.drop():
            self.without_outcome(index, item)

    def turned_away(self, index: int, item: Any) -> None:
        """Note that an item that was taken has ended before it started."""
        self._crew.finished += 1
        self.without_outcome(index, item)

    def without_outcome(self, index: int, item: Any) -> None:
        """Note that an item has no outcome."""
        self.lost = True
        self._sink.cancelled(index, item)

    def check_nurseries(self, task: Task, index: int) -> None:
        """End the run if the last item of a worker left a nursery open: wrong use, under every policy."""
        if task.child_nurseries:
            for nursery in task.child_nurseries:
                nursery.cancel_scope.cancel("its block was left without closing it")
            self._abandoned = [*self._abandoned, *task.child_nurseries]
            item = self._sink.label(index)
            msg = f"{item} left a nursery open: leave its `async with` block before the function returns"
            self._nursery.trio_adds_an_error = True
            self.keep(RuntimeError(msg), "an item left a nursery open")

    async def abandoned_ended(self) -> KeyboardInterrupt | None:
        """Wait until the tasks of nurseries that were left open have ended; see `tasks_ended`."""
        return await tasks_ended(self._abandoned) if self._abandoned else None

    def complete(self) -> bool:
        """Whether all items of the source were taken, and each has succeeded or failed."""
        return self._crew.ended is EXHAUSTED and not self.lost
