"""What an adapter knows of its calls: a state for each Trio run, or for each key in it."""

from __future__ import annotations

import inspect
import math
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

import attrs
import trio

from ._arguments import close_if_coroutine, describe
from ._protection import protected

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

T = TypeVar("T")


class PerRun(Generic[T]):
    """A value of its own for each Trio run, made when it is first asked for.

    It goes when the run or this object does, whichever is first. This object owns the values, as what they hold, such
    as the key of a state, may lead back to it: all of that is then one cycle, which the garbage collector takes in the
    middle of a run, too. So a value may refer to the run, or to a task of it, only while a call is in progress.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[trio.lowlevel.TrioToken, T] = WeakKeyDictionary()

    def get(self) -> T:
        """The value for the run that the calling task belongs to."""
        token = trio.lowlevel.current_trio_token()
        value = self._values.get(token)
        if value is None:
            value = self._values[token] = self._make()
        return value


class Expiring(Protocol):
    """What can be kept for a key."""

    def expires(self) -> float:
        """The time from which it is no different from a new one, if no call uses it."""
        ...


S = TypeVar("S", bound=Expiring)


@attrs.define(eq=False)
class Kept(Generic[T]):
    """A state, its key, and how many calls use it."""

    state: T
    key: Hashable = None
    users: int = 0
    in_heap: bool = False


class OneState(Generic[T]):
    """The state of an adapter without a `key`, in one Trio run: all calls use it, and it stays."""

    def __init__(self, state: T) -> None:
        self._kept = Kept(state)

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Kept[T]:
        """The state for a call with these arguments."""
        return self._kept

    def leave(self, kept: Kept[T]) -> None:
        """The call no longer uses it."""


_AT_ONCE: Final = 100  # how many states a call drops: after a pause, a hundred thousand of them may take a second


# Protected, as a user too many would keep a state for the rest of the run. `enter` calls the user's function.
@protected(but="enter")
class StatePerKey(Generic[S]):
    """The states of an adapter with a `key`, in one Trio run.

    A state stays while a call uses it, and until it expires. Those that expire while no call uses them are dropped by
    the next calls, whatever their keys: a heap tells which. Each state is in the heap at most once. If it was used
    again in the meantime, it is put back when it comes up.
    """

    def __init__(self, key: Callable[..., Hashable], make: Callable[[], S]) -> None:
        self._key = key
        self._make = make
        self._states: dict[Hashable, Kept[S]] = {}
        self._heap: list[tuple[float, int, Kept[S]]] = []
        self._numbers = count()  # states themselves have no order

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Kept[S]:
        """The state for a call with these arguments."""
        key = self._key(*args, **kwargs)
        try:
            hash(key)
        except TypeError as error:
            msg = f"key must return something hashable, got {describe(key)} from it"
            raise TypeError(msg) from error
        return self._state_of(key)

    def _state_of(self, key: Hashable) -> Kept[S]:
        self._drop_expired()
        kept = self._states.get(key)
        if kept is None:
            _check_no_awaitable(key)  # here, as none can be the key of a state
            kept = self._states[key] = Kept(self._make(), key)
        kept.users += 1
        return kept

    def leave(self, kept: Kept[S]) -> None:
        """The call no longer uses it."""
        kept.users -= 1
        if not kept.users:
            self._drop_in_time(kept)

    def _drop_in_time(self, kept: Kept[S]) -> None:
        expires = kept.state.expires()
        if expires == -math.inf or expires <= trio.current_time():
            self._states.pop(kept.key, None)  # a key whose hash has changed is not found
        elif not kept.in_heap:
            kept.in_heap = True
            heappush(self._heap, (expires, next(self._numbers), kept))

    def _drop_expired(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._heap or self._heap[0][0] > trio.current_time():
                break
            _, _, kept = heappop(self._heap)
            kept.in_heap = False
            # It may be in use, or have been dropped by the last call that used it.
            if not kept.users and self._states.get(kept.key) is kept:
                self._drop_in_time(kept)


def _check_no_awaitable(key: Hashable) -> None:
    if inspect.isawaitable(key):
        close_if_coroutine(key)
        msg = f"key must be a function that is not async, got {describe(key)} from it"
        raise TypeError(msg)


def states_of(key: Callable[..., Hashable] | None, make: Callable[[], S]) -> PerRun[OneState[S] | StatePerKey[S]]:
    """The states of an adapter: for each Trio run one or, with a `key` function, one for each key."""
    return PerRun(lambda: OneState(make()) if key is None else StatePerKey(key, make))
