"""What the adapters have in common."""

from __future__ import annotations

import functools
import inspect
import math
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

import attrs
import trio

from ._arguments import describe, name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def check_blocking(fn: object, caller: str) -> None:
    """Raise `TypeError` unless `fn` can be called, and is no async function."""
    check_not_async(fn, f"fn of {caller}", hint=": Trio can run it as it is")


def check_not_async(fn: object, argument: str, *, hint: str = "") -> None:
    """Raise `TypeError` unless `fn` can be called, and is no async function."""
    if not callable(fn):
        msg = f"{argument} must be a function that is not async, got {describe(fn)}"
        if inspect.iscoroutine(fn):
            fn.close()  # or Python would warn that it was never awaited
            msg += ": pass the function itself, without calling it"
        raise TypeError(msg)
    if is_async(fn):
        msg = f"{argument} must be a function that is not async, but {name_of(fn)} is{hint}"
        raise TypeError(msg)


def is_async(fn: object) -> bool:
    """Whether `fn` is an async function, or an object that is called like one."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(kind(fn) or kind(getattr(fn, "__call__", None)) for kind in kinds)  # noqa: B004 (an object may be one)


def close_if_coroutine(value: object) -> None:
    """Close a coroutine that comes where none should, or Python would warn that it was never awaited."""
    if inspect.iscoroutine(value):
        value.close()


def named_like(fn: Callable[P, object]) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Give an adapter the name and the docstring of what it wraps, and so tasks that run it: `map(resize)`."""

    def rename(adapter: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        functools.update_wrapper(adapter, fn)
        # An object with a `__call__` and a partial have no name to copy.
        adapter.__name__ = name_of(fn)
        return adapter

    return rename


class PerRun(Generic[T]):
    """A value of its own for each Trio run, made when it is first asked for.

    It goes when the run or this object does, whichever is first. A `trio.lowlevel.RunVar` of its own would keep both
    until the end of the run, and some programs make an adapter for each call.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def get(self) -> T:
        """The value for the run that the calling task belongs to."""
        try:
            values = _values.get()
        except LookupError:
            values = WeakKeyDictionary[PerRun[Any], Any]()
            _values.set(values)
        value: T | None = values.get(self)
        if value is None:
            value = values[self] = self._make()
        return value


# The run owns the values, so that a value may refer to tasks, which refer to their run. If Trio crashes and leaves
# tasks in a value, all of that is one cycle, which the garbage collector takes.
_values: Final = trio.lowlevel.RunVar[WeakKeyDictionary[PerRun[Any], Any]]("trio_fanout adapters")


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


class StatePerKey(Generic[S]):
    """The states of an adapter with a `key`, in one Trio run.

    A state stays while a call uses it, and until it expires. One that expires while no call uses it is dropped by the
    next call, whatever its key: a heap tells which. Each state is in the heap at most once. If it was used again in
    the meantime, it is put back when it comes up.
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
            msg = f"key must give something hashable, got {describe(key)} from it"
            raise TypeError(msg) from error
        return self._state_of(key)

    @trio.lowlevel.enable_ki_protection  # a user too many would keep the state for the rest of the run
    def _state_of(self, key: Hashable) -> Kept[S]:
        self._drop_expired()
        kept = self._states.get(key)
        if kept is None:
            _check_no_awaitable(key)  # here, as none can be the key of a state
            kept = self._states[key] = Kept(self._make(), key)
        kept.users += 1
        return kept

    @trio.lowlevel.enable_ki_protection
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
        while self._heap and self._heap[0][0] <= trio.current_time():
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
