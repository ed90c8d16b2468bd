"""How many items may run at once: the checks of a `limit`, and the queue of the items that wait to start."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from .._arguments import describe

if TYPE_CHECKING:
    from trio.lowlevel import Task

DEFAULT_LIMIT: Final = 40
"""The limit where none is given: 40, as Trio has it for threads."""


def check_limit(limit: object) -> None:
    """Raise unless `limit` is an int of 1 or more, `math.inf` or a limiter."""
    if isinstance(limit, int) and not isinstance(limit, bool):
        if limit >= 1:
            return
        wrong: type[Exception] = ValueError
    elif isinstance(limit, trio.CapacityLimiter) or (isinstance(limit, float) and limit == math.inf):
        return
    else:
        wrong = TypeError
    msg = f"limit must be an int of 1 or more, math.inf or a trio.CapacityLimiter, got {describe(limit)}"
    raise wrong(msg)


def check_not_held(limit: float | trio.CapacityLimiter) -> None:
    """Raise `RuntimeError` if `limit` is a limiter of which the calling task, or one above it, holds a token.

    It would hold that token while it waits for items that wait for a token: with enough such callers, forever.
    """
    if not isinstance(limit, trio.CapacityLimiter):
        return
    borrowers = set(limit.statistics().borrowers)
    task: Task | None = trio.lowlevel.current_task()
    while task is not None:
        if task in borrowers:
            msg = (
                f"limit={limit!r} can deadlock here: {task!r} holds one of its tokens and would wait for items that "
                "need one; give this call a limit of its own, or make it where no token is held"
            )
            raise RuntimeError(msg)
        task = task.parent_nursery.parent_task if task.parent_nursery is not None else None


class Tokens:
    """The tokens of one run, and the queue of the items that were taken and cannot start yet.

    Of a shared limiter each item has a token while it runs. A limiter of the run's own is its workers' alone, so that a
    worker keeps its token from item to item, unless there are more out than the limiter has.
    """

    __slots__ = ("_borrowers", "_scopes", "limiter", "overdrawn", "shared", "total", "unstarted")

    def __init__(self, limit: float | trio.CapacityLimiter) -> None:
        self.shared: bool = isinstance(limit, trio.CapacityLimiter)
        self.limiter: trio.CapacityLimiter = (
            limit if isinstance(limit, trio.CapacityLimiter) else trio.CapacityLimiter(limit)
        )
        self.total: float = self.limiter.total_tokens  # as of the last `look`
        self.overdrawn: bool = False  # workers hold more tokens than that
        self._borrowers: set[Task] = set()  # the workers that hold a token
        # The queue, in order: for each index, what is set when all items before it have started.
        # Ordered by class, as the first entry of a plain dict is behind the holes of all that were deleted before it.
        self.unstarted: OrderedDict[int, trio.Event] = OrderedDict()
        self._scopes: set[trio.CancelScope] = set()  # around each wait

    @property
    def workers(self) -> float:
        """How many workers are of use."""
        # With no tokens, one worker still waits, so that the run notices when there are some again.
        return self.total or 1

    @property
    def queued(self) -> int:
        """How many items are in the queue now."""
        return len(self._scopes)

    def look(self) -> None:
        """Look how many tokens there are now."""
        self.total = self.limiter.total_tokens
        self.overdrawn = self.total < len(self._borrowers)

    def holds(self, task: Task) -> bool:
        """Whether `task` holds a token."""
        return task in self._borrowers

    @trio.lowlevel.enable_ki_protection
    def borrow(self, task: Task) -> bool:
        """Borrow a token for `task` without waiting. False if there is none."""
        self._borrowers.add(task)
        try:
            self.limiter.acquire_on_behalf_of_nowait(task)
        except trio.WouldBlock:
            self._borrowers.remove(task)
            return False
        return True

    @trio.lowlevel.enable_ki_protection
    async def wait(self, task: Task, index: int) -> bool:
        """Wait for a token, if `task` has none, and for the items before this one. False if it is not to be started.

        At least one checkpoint. It is called right after the item was taken, so that the queue has the order of the
        items. One that is not started stays in the queue, to be found there.
        """
        start = False
        if self.unstarted:
            self.put_back(task)  # those before may wait for it
        turn = self.unstarted[index] = trio.Event()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self.holds(task):
                    await trio.lowlevel.checkpoint()
                else:
                    await self.limiter.acquire()
                    self._borrowers.add(task)
                # Workers that go on at the same time come back in any order: each wakes the next one.
                if next(iter(self.unstarted.values())) is not turn:
                    await turn.wait()
                start = not scope.cancel_called
            finally:
                self._scopes.remove(scope)
        if start:
            del self.unstarted[index]
            for next_turn in self.unstarted.values():
                next_turn.set()
                break
        return start

    @trio.lowlevel.enable_ki_protection
    def put_back(self, task: Task) -> None:
        """Put the token of `task` back, if it holds one."""
        if task not in self._borrowers:
            return
        self._borrowers.remove(task)
        self.limiter.release_on_behalf_of(task)
        self.overdrawn = self.total < len(self._borrowers)

    def turn_away(self) -> None:
        """Have every wait end without a start."""
        for scope in self._scopes:
            scope.cancel("no more items are started")
