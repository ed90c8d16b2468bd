"""How a run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from .._protection import protected
from .crew import CANCELLED, EXHAUSTED, STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio
    from trio.lowlevel import Task

    from .crew import Crew, End
    from .limits import Tokens
    from .nursery import SingleExceptionNursery
    from .sinks import Sink
    from .sources import Source


@protected()
@attrs.define(eq=False)
class Ending:
    """What ends a run, and what has to be told then.

    A run ends when its source is exhausted, when its owner stops it, or when something cancels it: its sink, its owner,
    or an exception that leaves the block or a worker. The first of these is kept, as `Crew.ended`, and no item is taken
    any more. Unless it is the source that has ended, items that were taken and have not started never start.
    """

    _source: Source[Any]
    _sink: Sink[Any, Any]
    _tokens: Tokens
    _crew: Crew
    _nursery: SingleExceptionNursery
    lost: bool = False  # an item has ended without an outcome, or will not start
    abandoned: Sequence[trio.Nursery] = ()  # those that items have left open

    def exhausted(self) -> None:
        """The source has ended, and all its items were taken."""
        self._crew.dismiss(EXHAUSTED)

    def stop(self) -> None:
        """Start no further item. Those that run finish."""
        self._start_no_more(STOPPED)
        self._source.stop()

    def cancel(self, reason: str) -> None:
        """Start no further item, and cancel those that run."""
        self._start_no_more(CANCELLED)
        self._nursery.cancel(reason)

    def keep(self, exc: BaseException, reason: str) -> bool:
        """Keep an exception that ends the run. False if it is to be raised into the nursery; see there."""
        self._start_no_more(CANCELLED)  # the other workers might not come to a checkpoint soon
        try:
            return self._nursery.keep(exc, reason)
        finally:
            del exc  # see `exceptions`

    def _start_no_more(self, cause: End) -> None:
        self._crew.dismiss(cause)
        for index, item in self._tokens.turn_away():
            self.never_starts(index, item)
        self.discard()

    def discard(self) -> None:
        """Discard items that were put into the source and will never start."""
        for index, item in self._source.drop():
            self.give_up(index, item)

    def never_starts(self, index: int, item: Any) -> None:
        """Note that an item that was taken has ended before it started."""
        self._crew.finished += 1
        self.give_up(index, item)

    def give_up(self, index: int, item: Any) -> None:
        """Note that an item has no outcome."""
        self.lost = True
        self._sink.cancelled(index, item)

    def left_by(self, task: Task, index: int) -> None:
        """End the run if the last item of a worker left a nursery open: wrong use, under every policy."""
        if task.child_nurseries:
            for nursery in task.child_nurseries:
                nursery.cancel_scope.cancel("its block was left without closing it")
            self.abandoned = [*self.abandoned, *task.child_nurseries]
            item = self._sink.label(index)
            msg = f"{item} left a nursery open: leave its `async with` block before the function returns"
            self.keep(RuntimeError(msg), "an item left a nursery open")

    def complete(self) -> bool:
        """Whether all items of the source were taken, and each has succeeded or failed."""
        return self._crew.ended is EXHAUSTED and not self.lost
