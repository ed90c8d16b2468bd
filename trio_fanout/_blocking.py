"""A blocking function that runs elsewhere, and the rules for what it returns and raises there."""

from __future__ import annotations

import inspect
import pickle
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._arguments import close_if_coroutine, describe, name_of
from ._core.exceptions import raise_unchanged
from ._crossing import best_trial, portable
from ._errors import safe_repr

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Blocking(Generic[R]):
    """A function on its way to an executor, as a function that checks there what it returns and raises.

    On the way back it would be too late. A coroutine cannot be pickled, and with some executors its call never ends. A
    `SystemExit` takes a worker of Dask with it.
    """

    def __init__(self, fn: Callable[..., R], caller: str) -> None:
        self.__name__ = name_of(fn)  # which Dask shows
        self.fn = fn
        self._caller = caller

    def __reduce__(self) -> tuple[Any, ...]:
        return _Arrived, (self.fn, self._caller)

    def __call__(self, /, *args: Any, **kwargs: Any) -> R:
        try:
            value = self.fn(*args, **kwargs)
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
        """What was raised for a call, as its failure."""
        return as_failure(exc, self.__name__, self._caller)


class _Arrived(Blocking[R]):
    """The function in another process: what it raises has to be pickled to get back."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> R:
        try:
            return super().__call__(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001  # raised again
            raise_unchanged(portable(exc, best_trial))


class PickledCall:
    """A call that is pickled when it is sent to a worker process, and arrives as the bytes that it was pickled to.

    To unpickle it imports the module of the function, and makes the arguments. That may raise anything, and a
    `SystemExit` would end the worker or the caller's program. So it is left to `run_pickled_call`. Pickling may raise
    one as well, and would end the thread that sends calls; then no call would ever arrive.
    """

    def __init__(
        self, blocking: Blocking[Any], dumps: Callable[[Any], bytes], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._blocking = blocking
        self._dumps = dumps
        self._call = blocking.fn, args, kwargs

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        try:
            return bytes, (self._dumps(self._call),)
        except Exception:
            raise
        except BaseException as exc:
            raise self._blocking.failure(exc) from exc  # noqa: ASYNC104  # no task of Trio's runs here


def run_pickled_call(call: bytes, caller: str) -> Any:
    """Unpickle a call in a worker process, and run it."""
    fn, args, kwargs = pickle.loads(call)  # noqa: S301  # as the executor would
    return Blocking(fn, caller)(*args, **kwargs)


def unpickled(result: bytes, blocking: Blocking[Any], loads: Callable[[bytes], Any]) -> Any:
    """What a worker process has returned as bytes: unpickled by the task that wants it, it can harm no other call."""
    try:
        return loads(result)
    except (Exception, KeyboardInterrupt):  # Ctrl-C, as this is the main thread
        raise
    except BaseException as exc:
        raise blocking.failure(exc) from exc  # noqa: ASYNC104  # not a cancellation, as nothing was awaited


def as_failure(exc: BaseException, name: str, caller: str) -> Exception:
    """What was raised for a call of a function, as the failure of that call: it must not end the caller's program."""
    if isinstance(exc, Exception):
        return exc
    failure = RuntimeError(f"{name} raised {safe_repr(exc)}, which under {caller} ends just this call")
    failure.__cause__ = exc
    return failure
