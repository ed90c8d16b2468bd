"""The line at a shared limiter, which others may use as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.lowlevel import Task


class Line:
    """The items of a run that wait for a token of a shared limiter, in the order in which they are to start."""

    __slots__ = ("_limiter", "_scopes", "_waiting")

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter: Final = limiter
        self._waiting: Final[dict[int, None]] = {}  # a set that keeps its order, of their indices
        self._scopes: Final[set[trio.CancelScope]] = set()  # around each wait

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, index: int) -> bool:
        return index in self._waiting

    def workers(self) -> float:
        """How many workers may be of use."""
        # At least one stands in the line when there are no tokens, and so learns that there are some again.
        return self._limiter.total_tokens or 1

    def enter(self, task: Task, index: int) -> bool:
        """Borrow a token for `task` to run an item with. If there is none, or others wait, the item has to `wait`."""
        if not self._waiting:
            try:
                self._limiter.acquire_on_behalf_of_nowait(task)
            except trio.WouldBlock:
                pass
            else:
                return True
        self._waiting[index] = None
        return False

    async def wait(self, index: int, got_token: Callable[[], None]) -> bool:
        """Wait for a token, and for the items before this one. False if it is not to be started any more.

        It is called right after `enter`, so that tokens come in the order of the items. An item that is not started
        stays in the line, to be found there.
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
                    while next(iter(self._waiting)) != index:  # noqa: ASYNC110  # a turn of the loop or two
                        await trio.lowlevel.checkpoint()
                    start = not scope.cancel_called
                finally:
                    self._scopes.remove(scope)
        finally:
            if start:
                del self._waiting[index]
            elif has_token:
                self._limiter.release()
        return start

    def leave(self, task: Task) -> None:
        """Give the token of `task` back. `RuntimeError` if it has none."""
        self._limiter.release_on_behalf_of(task)

    def close(self) -> None:
        """Send all away that wait."""
        for scope in self._scopes:
            scope.cancel()
