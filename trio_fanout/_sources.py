"""Where items come from: what can be taken at once, and what has to be waited for.

A source numbers its items from 0, in order. All workers share it:

- `take()` gives the next ``(index, item)`` without waiting, or None where there is none just now.
- `open` tells whether more may come from outside of the loop. A worker that finds nothing then idles; otherwise it
  leaves.
- `ready(taken)` is how many more workers would find something, when `taken` items have been taken.
- `length` is how many items it will have in all, or None.
- `drop()` gives up the items that nobody has taken, when none will be started any more.
- `context` is what the next item is to see of context variables.
"""

from __future__ import annotations

import contextvars
import functools
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import trio

from ._arguments import check_iterable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Sequence

    from typing_extensions import TypeIs

    from ._run import Run

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What the loop asks of a source."""

    open: bool
    length: int | None

    @property
    def context(self) -> contextvars.Context: ...
    def take(self) -> tuple[int, T_co] | None: ...
    def ready(self, taken: int, /) -> float: ...
    def drop(self) -> Sequence[tuple[int, T_co]]: ...


class Pull(Generic[T]):
    """The items of a plain iterable, taken by the workers themselves."""

    __slots__ = ("context", "length", "open", "take")

    def __init__(self, items: Iterable[T]) -> None:
        self.context: Final = contextvars.copy_context()
        self.open: bool = False
        self.length: int | None = length_of(items)
        # No method, because the loop calls it for each item, and this is C all through: Any, for type checkers.
        self.take: Any = functools.partial(next, enumerate(items), None)

    def ready(self, taken: int, /) -> float:
        """How many items are left; where that cannot be told, one at a time is looked for."""
        # A wrong length, 0 too, costs speed and no item: those who find items take them up to the last. And where there
        # is none, the one that looks for it makes the run a checkpoint.
        return self.length - taken if self.length else 1

    def count(self, taken: int, /) -> int:
        """How many items there are: those taken, and those that were promised, where the run ended before."""
        return max(taken, self.length or 0)

    def drop(self) -> Sequence[tuple[int, T]]:
        """Nothing: what has not been taken is still the caller's."""
        return ()


class Queue(Generic[T]):
    """Items that somebody puts in: the base of what an async source is read into, and of a group's queue."""

    __slots__ = ("_waiting", "given", "length", "open")

    def __init__(self, length: int | None = None) -> None:
        self.open: bool = True
        self.length: int | None = length
        self.given: int = 0  # how many items have been put in
        self._waiting: Final[deque[tuple[int, T]]] = deque()

    def put(self, item: T) -> int:
        """Add an item at the end; returns its index."""
        index = self.given
        self._waiting.append((index, item))
        self.given += 1
        return index

    def take(self) -> tuple[int, T] | None:
        """The first item that nobody has taken yet."""
        return self._waiting.popleft() if self._waiting else None

    def ready(self, taken: int, /) -> float:
        """How many items wait to be taken."""
        return len(self._waiting)

    def drop(self) -> Sequence[tuple[int, T]]:
        """Take all items that wait, for nobody to run."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped


class FedQueue(Queue[T]):
    """The items of an async iterable, which one task reads."""

    __slots__ = ("_items", "context")
    length: int | None

    def __init__(self, items: AsyncIterable[T]) -> None:
        super().__init__(length_of(items))
        self.context: Final = contextvars.copy_context()
        self._items: Final = items

    async def feed(self, run: Run[T, Any]) -> None:
        """Read the items, one for each worker that is free to run it, in this one task.

        When the run ends early, an async generator is closed here, in the task that it ran in: it may hold a cancel
        scope or a nursery open across its yields.
        """
        iterator = aiter(self._items)
        with trio.CancelScope() as scope:
            try:
                await run.begin()
                while await run.has_room(self.full):
                    run.reading = scope
                    try:
                        self.put(await anext(iterator))  # with no name for it here, an idle run keeps no item alive
                    except StopAsyncIteration:
                        self.length = self.given
                        run.close()
                        break
                    finally:
                        run.reading = None
                    run.hire()
            finally:
                # Not shielded: if this is cancelled too, the generator is told by a Cancelled, as anywhere in Trio.
                if isinstance(iterator, AsyncGenerator):
                    await iterator.aclose()

    def full(self) -> bool:
        """Whether to read no further, though a worker may be free: never, where the workers are the only limit."""
        return False

    def count(self, taken: int, /) -> int:
        """How many items there are: those read, and those that were promised, where the run ended before."""
        return max(self.given, self.length or 0)


def is_async(items: Iterable[T] | AsyncIterable[T]) -> TypeIs[AsyncIterable[T]]:
    """Whether `items` is read as an async iterable: also where it is a plain one, too. `TypeError` if it is neither."""
    if getattr(type(items), "__aiter__", None) is not None:
        return True
    check_iterable(items, "items", "an iterable or an async iterable")
    return False


def length_of(items: object) -> int | None:
    """How many items there will be, or None where nobody can tell."""
    try:
        return len(items)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError, AttributeError, OverflowError):  # lazy data sets; very long ranges
        return None
