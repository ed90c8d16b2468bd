"""What `in_thread`, `in_process`, `in_executor` and `throttle` have in common."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import trio

from ._core.arguments import describe, name_of
from ._errors import safe_repr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import TrioToken

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def check_blocking(fn: object, caller: str) -> None:
    """Raise `TypeError` unless `fn` can be called, and is no async function."""
    if not callable(fn):
        msg = f"fn of {caller} must be a function that is not async, got {describe(fn)}"
        if inspect.iscoroutine(fn):
            fn.close()  # or Python would warn that it was never awaited
            msg += ": pass the function itself, without calling it"
        raise TypeError(msg)
    if is_async(fn):
        msg = f"fn of {caller} must be a function that is not async, but {name_of(fn)} is: Trio can run it as it is"
        raise TypeError(msg)


class Blocking(Generic[R]):
    """A function on its way to an executor or a worker process, and what is to be said of it there.

    What it returns and raises is checked where it runs. On the way back it would be too late: a coroutine cannot be
    pickled, and with some executors its call never ends; and a `SystemExit` takes a worker of Dask with it.
    """

    def __init__(self, fn: Callable[..., R], caller: str) -> None:
        self.__name__ = name_of(fn)  # which Dask shows
        self._fn = fn
        self._caller = caller

    def __call__(self, /, *args: Any, **kwargs: Any) -> R:
        try:
            value = self._fn(*args, **kwargs)
        except Exception:
            raise
        except BaseException as exc:
            raise self.failure(exc) from exc  # noqa: ASYNC104  # no task of Trio's runs here
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()  # or Python would warn that it was never awaited
            msg = (
                f"fn of {self._caller} must be a function that is not async, "
                f"but {self.__name__} returned {describe(value)} to be awaited"
            )
            raise TypeError(msg)
        return value

    def failure(self, exc: BaseException) -> Exception:
        """What the function raised, as the failure of one call: it must not end the caller's program."""
        if isinstance(exc, Exception):
            return exc
        failure = RuntimeError(
            f"{self.__name__} raised {safe_repr(exc)}, which under {self._caller} ends just this call"
        )
        failure.__cause__ = exc
        return failure


def is_async(fn: object) -> bool:
    """Whether `fn` is an async function, or an object that is called like one."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(kind(fn) or kind(getattr(fn, "__call__", None)) for kind in kinds)  # noqa: B004 (an object may be one)


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

    It goes when the run or this object does, whichever is first. A `trio.lowlevel.RunVar` would keep both until the
    end of the run, and some programs make an adapter for each call.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Final = make
        self._values: Final[WeakKeyDictionary[TrioToken, T]] = WeakKeyDictionary()

    def get(self) -> T:
        """The value for the run that the calling task belongs to."""
        token = trio.lowlevel.current_trio_token()
        value = self._values.get(token)
        if value is None:
            value = self._values[token] = self._make()
        return value
