"""Bounds the items that were taken from the source and not yet received by the reader."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from .._arguments import describe
from .sources import FedQueue, Pull, Source

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable

    from .limits import Tokens

T = TypeVar("T")


def check_buffer(buffer: object) -> None:
    """Raise unless `buffer` is an int of 0 or more, `math.inf` or None."""
    takes = f"buffer must be an int of 0 or more, math.inf or None, got {describe(buffer)}"
    if isinstance(buffer, bool) or not (buffer is None or isinstance(buffer, int) or buffer == math.inf):
        raise TypeError(takes)
    if isinstance(buffer, int) and buffer < 0:
        raise ValueError(takes)


class Window:
    """Room for the items that run and for `buffer` results, by default as many as run."""

    __slots__ = ("_buffer", "_tokens", "outstanding")

    def __init__(self, tokens: Tokens, buffer: float | None) -> None:
        self._tokens = tokens
        self._buffer = buffer
        self.outstanding: int = 0  # items that were taken and not yet handed over

    def available(self) -> float:
        """How many more items may be outstanding."""
        limit = self._tokens.total or 1  # with no tokens, one item still waits for one
        return limit + (limit if self._buffer is None else self._buffer) - self.outstanding

    def free(self) -> None:
        """Free the room of an item that was handed over, or never will be."""
        self.outstanding -= 1


class WindowedPull(Source[T]):
    """A plain iterable, from which items are taken only while the window has room."""

    __slots__ = ("_ended", "_pull", "_refused", "_window", "length")

    def __init__(self, items: Iterable[T], window: Window) -> None:
        super().__init__()
        self._pull = Pull(items)
        self._window = window
        self.length: int | None = self._pull.length
        self._refused = False  # a worker found no room, and waits
        self._ended = False  # whether the iterator has ended

    @property
    def may_grow(self) -> bool:
        """Whether there may be more items: where there is no room for them, workers wait for the reader."""
        return not self._ended

    def take(self) -> tuple[int, T] | None:
        """Take the next item, if there is room for it."""
        self._refused = self._window.available() <= 0
        if self._refused:
            return None
        entry: tuple[int, T] | None = self._pull.take()
        if entry is None:
            self._ended = True
        else:
            self._window.outstanding += 1
        return entry

    def ready(self, taken: int, /) -> float:
        """How many items are left that there is room for."""
        # Where room was refused, nothing has shown yet whether that was the end: a worker has to look.
        return min(max(self._pull.ready(taken), self._refused), self._window.available())

    def close(self) -> None:
        """Close a generator; see `Pull`."""
        self._pull.close()


class WindowedQueue(FedQueue[T]):
    """The items of an async iterable, which is read only while the window has room."""

    __slots__ = ("_window",)

    def __init__(self, items: AsyncIterable[T], window: Window) -> None:
        super().__init__(items)
        self._window = window

    def put(self, item: T) -> None:
        """Add an item at the end."""
        self._window.outstanding += 1
        super().put(item)

    def is_full(self) -> bool:
        """Whether the source should not be read until a result has been handed over."""
        return self._window.available() <= 0
