"""Functions wrapped: under the name of what they wrap, and on their way to where they run."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from ._arguments import attribute_of, close_if_coroutine, describe, name_of
from ._errors import safe_repr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")

_COPIED: Final[dict[str, type]] = {
    "__module__": str,
    "__name__": str,
    "__qualname__": str,
    "__doc__": str,
    "__annotations__": dict,
    "__annotate__": FunctionType,  # instead of those, from Python 3.14
    "__type_params__": tuple,  # from Python 3.12
}
"""What an adapter takes over from its function, and of which type: an object may answer every name with anything."""


def named_like(fn: Callable[P, object]) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Give an adapter the name and the docstring of what it wraps, and so tasks that run it: `map(resize)`."""

    def rename(adapter: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        assigned = [
            name
            for name, kind in _COPIED.items()
            if name in functools.WRAPPER_ASSIGNMENTS and attribute_of(fn, name, kind) is not None
        ]
        updated = ["__dict__"] if attribute_of(fn, "__dict__", dict) is not None else []
        functools.update_wrapper(adapter, fn, assigned, updated)
        # An object with a `__call__` and a partial have no name to copy.
        adapter.__name__ = name_of(fn)
        return adapter

    return rename


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
            close_if_coroutine(value)
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
