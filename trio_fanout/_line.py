"""The line at a shared limiter, which others may use as well."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.lowlevel import Task

T = TypeVar("T")


class Line(Generic[T]):
    """The items of a run that wait for a token of a shared limiter, in the order in which they are to start."""

    __slots__ = ("_closed", "_limiter", "_scopes", "_waiting")

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: Final = limiter
        self._waiting: Final[deque[tuple[int, T]]] = deque()
        self._scopes: Final[set[trio.CancelScope]] = set()  # around each wait
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, index: int) -> bool:
        return any(index == waiting for waiting, _ in self._waiting)

    def workers(self) -> float:
        """How many workers may be of use."""
        # At least one stands in the line when there are no tokens, and so learns that there are some again.
        return self._limiter.total_tokens or 1

    def enter(self, task: Task, entry: tuple[int, T]) -> bool:
        """Borrow a token for `task` to run an item with. If there is none, the item has to `wait`."""
        if not self._waiting:
            try:
                self._limiter.acquire_on_behalf_of_nowait(task)
            except trio.WouldBlock:
                pass
            else:
                return True
        self._waiting.append(entry)
        return False

    async def wait(self, entry: tuple[int, T], got_token: Callable[[], None]) -> bool:
        """Wait for a token, and for the items before this one. False if it is not to be started any more.

        An item that is not started stays in the line, to be found there.
        """
        start = has_token = False
        try:
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await self._limiter.acquire()
                    has_token = True
                    got_token()
                    # Workers that got their tokens at the same time come back in any order.
                    while self._waiting[0] is not entry:  # noqa: ASYNC110  # a turn of the loop or two
                        await trio.lowlevel.checkpoint()
                    start = not self._closed
                finally:
                    self._scopes.remove(scope)
        finally:
            if start:
                self._waiting.popleft()
            elif has_token:
                self._limiter.release()
        return start

    def leave(self, task: Task) -> None:
        """Give the token of `task` back."""
        self._limiter.release_on_behalf_of(task)

    def holds(self, task: Task) -> bool:
        """Whether `task` has a token."""
        return task in self._limiter.statistics().borrowers

    def close(self) -> None:
        """Send all away that wait."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()
