"""Where items come from: what can be taken immediately, and what has to be waited for."""

from __future__ import annotations

import contextvars
import functools
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from .._arguments import check_iterable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence

    from typing_extensions import TypeIs

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(ABC, Generic[T_co]):
    """What the loop asks of a source, with the answers that most of them give.

    A source numbers its items from 0, in order. All workers share it.
    """

    __slots__ = ("context",)

    length: int | None = None
    """How many items there are in all, if that is known."""

    fed: bool = False
    """Whether a task reads the source: `feed`."""

    context_of: Callable[[Any], contextvars.Context] | None = None
    """Returns the context variables that an item sees, if each item brings its own. Otherwise all see `context`."""

    def __init__(self) -> None:
        self.context: contextvars.Context = contextvars.copy_context()

    @property
    def may_grow(self) -> bool:
        """Whether items may still arrive. If so, a worker that finds none waits. If not, the source has ended."""
        return False

    @abstractmethod
    def take(self) -> tuple[int, T_co] | None:
        """Take the next ``(index, item)`` without waiting. None if there is none just now."""

    @abstractmethod
    def ready(self, taken: int, /) -> float:
        """How many more workers would find an item, when `taken` items have been taken."""

    def seen(self, taken: int, /) -> int:
        """How many items have come out of the source, when `taken` items have been taken."""
        return taken

    def drop(self) -> Sequence[tuple[int, T_co]]:
        """Drop the items that nobody has taken, when none will be started any more.

        By default there are none: what was not taken still belongs to the caller.
        """
        return ()

    def stop(self) -> None:
        """Stop reading, if a task reads the source."""

    def wake_feeder(self) -> None:
        """Have the task that reads the source, if there is one, look whether there is room."""

    def close(self) -> None:
        """Let go of the source when the run is over."""


class Pull(Source[T]):
    """The items of a plain iterable, taken by the workers themselves."""

    __slots__ = ("_first", "_iterator", "_run_in_context", "length", "take")

    def __init__(self, items: Iterable[T]) -> None:
        super().__init__()
        self.length: int | None = length_of(items)
        self._iterator: Iterator[T] | None = iter(items)
        # Each step of the iterator runs in one context, whichever worker asks: a generator may set a variable before a
        # `yield` and reset it after.
        self._run_in_context: Any = contextvars.copy_context().run
        entries = enumerate(itertools.chain([None], iter(self._iterator)), -1)
        # If nobody held its first tuple, `enumerate` would use it again and again, and keep an item alive by it.
        self._first = next(entries)
        # Not a method, because the loop calls it for each item, and this is C all through. Any, for type checkers.
        self.take: Any = functools.partial(self._run_in_context, next, entries, None)

    def ready(self, taken: int, /) -> float:
        """How many items are left. Where that is not known, one at a time is looked for."""
        # A wrong length, even 0, costs speed and no item: workers that find items take them up to the last. One worker
        # is started even if there are none, so that a run over nothing is a checkpoint, too.
        return self.length - taken if self.length else 1

    @trio.lowlevel.disable_ki_protection  # it runs the user's code
    def close(self) -> None:
        """Close a generator, as an async one is closed. Other iterators are let go, as at the end of a ``for``."""
        iterator, self._iterator, self.take = self._iterator, None, None
        if isinstance(iterator, Generator):
            self._run_in_context(iterator.close)


class Queue(Source[T]):
    """A queue that is filled from outside; base class for async sources and for groups."""

    __slots__ = ("_queued", "given")

    def __init__(self) -> None:
        super().__init__()
        self.given: int = 0  # how many items have been put in
        self._queued: deque[tuple[int, T]] = deque()

    def put(self, item: T) -> None:
        """Add an item at the end."""
        self._queued.append((self.given, item))
        self.given += 1

    def take(self) -> tuple[int, T] | None:
        """Take the first item."""
        return self._queued.popleft() if self._queued else None

    def ready(self, taken: int = 0, /) -> float:
        """How many items wait to be taken."""
        return len(self._queued)

    def drop(self) -> Sequence[tuple[int, T]]:
        """Take all items that wait. They will never run."""
        dropped = list(self._queued)
        self._queued.clear()
        return dropped


class FedQueue(Queue[T]):
    """The items of an async iterable, which one task reads: `feed`."""

    fed = True
    __slots__ = ("ended", "feeder", "items", "length", "reading")

    def __init__(self, items: AsyncIterable[T]) -> None:
        super().__init__()
        self.items: AsyncIterable[T] = items
        self.length: int | None = length_of(items)
        self.ended: bool = False  # whether the iterator has ended
        self.reading: trio.CancelScope | None = None  # around the iterator, while its next item is awaited
        self.feeder: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()  # where the task that reads waits for room

    @property
    def may_grow(self) -> bool:
        """Whether items may still arrive."""
        return not self.ended

    def seen(self, taken: int, /) -> int:
        """How many items have been read."""
        return self.given

    def is_full(self) -> bool:
        """Whether to read no further, even if a worker is free: never, where the workers are the only limit."""
        return False

    def stop(self) -> None:
        """Stop reading."""
        if self.reading is not None:
            self.reading.cancel("no more items are started")
        self.wake_feeder()

    def wake_feeder(self) -> None:
        """Have the task that reads look whether there is room."""
        if self.feeder:
            self.feeder.unpark()

    def close(self) -> None:
        """Let go of the iterable. `feed` has closed the iterator."""
        del self.items


def is_async(items: Iterable[T] | AsyncIterable[T]) -> TypeIs[AsyncIterable[T]]:
    """Whether to iterate `items` asynchronously, as an object that supports both. `TypeError` if it is neither."""
    if getattr(type(items), "__aiter__", None) is not None:
        return True
    check_iterable(items, "items", "an iterable or an async iterable")
    return False


def length_of(items: object) -> int | None:
    """How many items there will be, or None if nothing says so."""
    try:
        return len(items)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError, AttributeError, OverflowError):  # lazy data sets; very long ranges
        return None
