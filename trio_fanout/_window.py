"""A bound on how many items are out: taken from where they come, and not yet handed over to a reader."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from ._arguments import got
from ._sources import FedQueue, Pull

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Sequence

T = TypeVar("T")


def check_buffer(buffer: object) -> None:
    """Raise unless `buffer` is an int of 0 or more, `math.inf` or None."""
    takes = f"buffer must be an int of 0 or more, math.inf or None, got {got(buffer)}"
    if isinstance(buffer, bool) or not (buffer is None or isinstance(buffer, int) or buffer == math.inf):
        raise TypeError(takes)
    if isinstance(buffer, int) and buffer < 0:
        raise ValueError(takes)


class Window:
    """Room for the items that run and `buffer` results, by default as many as run."""

    __slots__ = ("_buffer", "_limiter", "_size", "out")

    def __init__(self, limit: float | trio.CapacityLimiter, buffer: float | None) -> None:
        self._limiter: Final = limit if isinstance(limit, trio.CapacityLimiter) else None
        self._buffer: Final = buffer
        self._set_size(1 if isinstance(limit, trio.CapacityLimiter) else limit)
        self.out: int = 0

    def room(self) -> float:
        """How many more items may be out."""
        if self._limiter is not None:
            # Its tokens may change; without any, one item still waits for one.
            self._set_size(self._limiter.total_tokens or 1)
        return self._size - self.out

    def _set_size(self, limit: float) -> None:
        self._size = limit + (limit if self._buffer is None else self._buffer)


class WindowedPull(Generic[T]):
    """A plain iterable, from which items are taken only while the window has room."""

    __slots__ = ("_pull", "_refused", "_window", "context", "length", "open")

    def __init__(self, items: Iterable[T], window: Window) -> None:
        self._pull: Final = Pull(items)
        self._window: Final = window
        self.context: Final = self._pull.context
        self.length = self._pull.length
        self._refused = False  # a worker found no room, and waits
        self.open: bool = True  # where the window has no room, a worker waits for the reader

    def take(self) -> tuple[int, T] | None:
        """The next item, if there is room for it."""
        self._refused = self._window.room() <= 0
        if self._refused:
            return None
        entry: tuple[int, T] | None = self._pull.take()
        if entry is None:
            self.open = False
        else:
            self._window.out += 1
        return entry

    def ready(self, taken: int, /) -> float:
        """How many items are left that there is room for."""
        if not self.open:
            return 0
        # Where room was refused, nobody has yet seen whether that was the end: one has to look.
        return min(max(self._pull.ready(taken), self._refused), self._window.room())

    def drop(self) -> Sequence[tuple[int, T]]:
        """Nothing: what has not been taken is still the caller's."""
        return ()


class WindowedQueue(FedQueue[T]):
    """The items of an async iterable, which is read only while the window has room."""

    __slots__ = ("_window",)

    def __init__(self, items: AsyncIterable[T], window: Window) -> None:
        super().__init__(items)
        self._window: Final = window

    def put(self, item: T) -> int:
        """Add an item at the end; returns its index."""
        self._window.out += 1
        return super().put(item)

    def full(self) -> bool:
        """Whether the source should not be read until a result has been handed over."""
        return self._window.room() <= 0
