"""How many items may run at once: the checks of a `limit`, and the queue of the items that wait to start."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from .._arguments import describe
from .._protection import protected

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


@attrs.define(eq=False)
class _Waiting:
    """An item that was taken and cannot start yet."""

    item: Any
    turn: trio.Event = attrs.field(factory=trio.Event)  # set when all items before it have started
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # around the wait


@protected()
class Tokens:
    """The tokens of one run, and the queue of the items that were taken and cannot start yet.

    With a shared limiter, each item has a token while it runs. A limiter of the run's own is used by its workers alone,
    so a worker keeps its token from item to item, unless more tokens are out than the limiter has. Others who can
    see it may hold its tokens, or wait for one: then an idle worker holds none.
    """

    __slots__ = ("_borrowers", "limiter", "never_started", "shared", "total", "waiting")

    def __init__(self, limit: float | trio.CapacityLimiter) -> None:
        self.shared: bool = isinstance(limit, trio.CapacityLimiter)
        self.limiter: trio.CapacityLimiter = (
            limit if isinstance(limit, trio.CapacityLimiter) else trio.CapacityLimiter(limit)
        )
        self.total: float = self.limiter.total_tokens  # as of the last `look`
        self._borrowers: set[Task] = set()  # the workers that hold a token
        # The queue, in order, by index. Ordered by class, as the first entry of a plain dict is behind the holes of all
        # that were deleted before it.
        self.waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self.never_started: set[int] = set()  # the indices of those that left the queue without a start

    @property
    def worker_limit(self) -> float:
        """How many workers are of use."""
        # With no tokens, one worker still waits, so that the run notices when there are some again.
        return self.total or 1

    def look(self) -> None:
        """Look how many tokens there are now."""
        self.total = self.limiter.total_tokens

    def holds(self, task: Task) -> bool:
        """Whether `task` holds a token."""
        return task in self._borrowers

    def borrow(self, task: Task) -> bool:
        """Borrow a token for `task` without waiting. False if there is none."""
        self._borrowers.add(task)
        try:
            self.limiter.acquire_on_behalf_of_nowait(task)
        except trio.WouldBlock:
            self._borrowers.remove(task)
            return False
        return True

    async def wait(self, task: Task, index: int, item: Any) -> bool:
        """Wait for a token, if `task` has none, and for the items before this one. False if it is not to be started.

        At least one checkpoint. It is called right after the item was taken, so that the queue has the order of the
        items.
        """
        entry = self.waiting[index] = _Waiting(item)
        with entry.scope:
            if self.holds(task):
                await trio.lowlevel.checkpoint()
            else:
                await self.limiter.acquire()
                self._borrowers.add(task)
            # Trio may resume workers that got tokens in the same turn in any order: each lets the next one go. The
            # queue is empty if all were turned away.
            if next(iter(self.waiting), index) != index:
                await entry.turn.wait()
        if self.waiting.pop(index, None) is None:
            return False  # it was turned away
        self._wake_first()
        return True

    def withdraw(self, index: int) -> bool:
        """Take an item out of the queue, because its wait was cancelled. False if it was turned away before."""
        if self.waiting.pop(index, None) is None:
            return False
        self.never_started.add(index)
        self._wake_first()
        return True

    def turn_away(self) -> list[tuple[int, Any]]:
        """Have every wait end without a start. Returns the items that waited."""
        turned_away = [(index, entry.item) for index, entry in self.waiting.items()]
        for entry in self.waiting.values():
            entry.scope.cancel("no more items are started")
        self.never_started.update(self.waiting)
        self.waiting.clear()
        return turned_away

    def _wake_first(self) -> None:
        for entry in self.waiting.values():
            entry.turn.set()
            break

    def put_back(self, task: Task) -> None:
        """Put the token of `task` back, if it holds one."""
        if task not in self._borrowers:
            return
        self._borrowers.remove(task)
        self.limiter.release_on_behalf_of(task)
