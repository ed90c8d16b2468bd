"""Where items come from: what can be taken at once, and what has to be waited for.

A source numbers its items from 0, in order. All workers share it:

- `take()` gives the next ``(index, item)`` without waiting, or None where there is none just now.
- `open` tells whether items may still arrive. If so, a worker that finds none waits; otherwise the source has ended,
  and is not asked again.
- `workers_wait` tells whether it is ever open: if not, no worker waits for items.
- `ready(taken)` is how many more workers would find an item, when `taken` items have been taken.
- `length` is how many items there are in all, or None.
- `stop()` and `wake_reader()` are for a source that a task reads: stop reading, look whether there is room.
- `drop()` discards the items that nobody has taken, when none will be started any more.
- `context` has the context variables that items see. Where each item brings its own, `context_of(item)` gives it.
"""

from __future__ import annotations

import contextvars
import functools
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

from .._arguments import check_iterable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Sequence

    from typing_extensions import TypeIs

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What the loop asks of a source."""

    @property
    def open(self) -> bool: ...
    @property
    def workers_wait(self) -> bool: ...
    @property
    def fed(self) -> bool: ...
    @property
    def length(self) -> int | None: ...
    @property
    def context(self) -> contextvars.Context: ...
    @property
    def context_of(self) -> Callable[[Any], contextvars.Context] | None: ...
    def take(self) -> tuple[int, T_co] | None: ...
    def ready(self, taken: int, /) -> float: ...
    def drop(self) -> Sequence[tuple[int, T_co]]: ...
    def stop(self) -> None: ...
    def wake_reader(self) -> None: ...


class Pull(Generic[T]):
    """The items of a plain iterable, taken by the workers themselves."""

    __slots__ = ("context", "length", "take")
    open = False
    workers_wait = False
    fed = False
    context_of = None

    def __init__(self, items: Iterable[T]) -> None:
        self.context: contextvars.Context = contextvars.copy_context()
        self.length: int | None = length_of(items)
        # No method, because the loop calls it for each item, and this is C all through: Any, for type checkers. Each
        # step of the iterator runs in one context, whichever worker asks: a generator may set a variable before a
        # `yield` and reset it after.
        self.take: Any = functools.partial(contextvars.copy_context().run, next, enumerate(items), None)

    def ready(self, taken: int, /) -> float:
        """How many items are left; if that cannot be told, one at a time is looked for."""
        # A wrong length, 0 too, costs speed and no item: workers that find items take them up to the last. And where
        # there is none, the worker that looks for it makes the run a checkpoint.
        return self.length - taken if self.length else 1

    def count(self, taken: int, /) -> int:
        """How many items there are: those taken, and those that were promised, where the run ended before."""
        return max(taken, self.length or 0)

    def drop(self) -> Sequence[tuple[int, T]]:
        """Discard nothing: items that were not taken still belong to the caller."""
        return ()

    def stop(self) -> None:
        """Do nothing: no task reads the source."""

    wake_reader = stop


class Queue(Generic[T]):
    """A queue that is filled from outside; base class for async sources and for groups."""

    __slots__ = ("_waiting", "context", "given")
    workers_wait = True
    fed = False
    length: int | None = None
    context_of: Callable[[Any], contextvars.Context] | None = None

    def __init__(self) -> None:
        self.context: contextvars.Context = contextvars.copy_context()
        self.given: int = 0  # how many items have been put in
        self._waiting: deque[tuple[int, T]] = deque()

    def put(self, item: T) -> None:
        """Add an item at the end."""
        self._waiting.append((self.given, item))
        self.given += 1

    def take(self) -> tuple[int, T] | None:
        """Take the first item."""
        return self._waiting.popleft() if self._waiting else None

    def ready(self, taken: int = 0, /) -> float:
        """How many items wait to be taken."""
        return len(self._waiting)

    def drop(self) -> Sequence[tuple[int, T]]:
        """Take all items that wait; they will never run."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def stop(self) -> None:
        """Do nothing: no task reads the source."""

    wake_reader = stop


class FedQueue(Queue[T]):
    """The items of an async iterable, which one task reads: `feed`."""

    __slots__ = ("items", "length", "open", "reader", "reading")
    fed = True

    def __init__(self, items: AsyncIterable[T]) -> None:
        super().__init__()
        self.items: AsyncIterable[T] = items
        self.length: int | None = length_of(items)
        self.open: bool = True  # until the iterator has ended
        self.reading: trio.CancelScope | None = None  # around the iterator, while its next item is awaited
        self.reader: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()  # where the task that reads waits for room

    def is_full(self) -> bool:
        """Whether to read no further, though a worker may be free: never, where the workers are the only limit."""
        return False

    def count(self, taken: int, /) -> int:
        """How many items there are: those read, and those that were promised, where the run ended before."""
        return max(self.given, self.length or 0)

    def stop(self) -> None:
        """Stop reading."""
        if self.reading is not None:
            self.reading.cancel("no more items are started")
        self.wake_reader()

    def wake_reader(self) -> None:
        """Have the task that reads look whether there is room."""
        if self.reader:
            self.reader.unpark()


def is_async(items: Iterable[T] | AsyncIterable[T]) -> TypeIs[AsyncIterable[T]]:
    """Whether to iterate `items` asynchronously. What supports both is used as async. `TypeError` if it is neither."""
    if getattr(type(items), "__aiter__", None) is not None:
        return True
    check_iterable(items, "items", "an iterable or an async iterable")
    return False


def length_of(items: object) -> int | None:
    """How many items there will be, or None where nothing tells."""
    try:
        return len(items)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError, AttributeError, OverflowError):  # lazy data sets; very long ranges
        return None
