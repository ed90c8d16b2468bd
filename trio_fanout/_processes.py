"""CPU-bound functions in worker processes: `in_process`."""

from __future__ import annotations

import functools
import importlib
import sys
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from outcome import Error, Value

from ._arguments import attribute_of, check_blocking
from ._blocking import Blocking, PickledCall, as_failure, run_pickled_call, unpickled
from ._crossing import best_trial, pickler, portable
from ._naming import named_like
from ._opening import check_in_trio
from ._signals import signal_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")

_MAIN_GUARD: Final = 'what starts the program has to stand under `if __name__ == "__main__":`'


def in_process(fn: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    """Make an async function out of a CPU-bound one, by calling it in a worker process.

    The processes are those of `trio-parallel`, which the extra ``process`` installs. They are started when they are
    needed, and kept for the next call. At most as many as there are CPUs run at once, whatever the limit of the call
    that the result is passed to. That is `trio_parallel.current_default_worker_limiter`, where it can be changed. For
    their start, their time to live and so on, see `trio_parallel.configure_default_context` and `cache_scope`.

    Whatever crosses to the process and back is pickled: `fn` (by its module and name, so it has to be importable
    there), its arguments, and what it returns or raises. If something cannot be pickled, in either direction, that call
    fails. Nothing else crosses: no context variables, no global state, no open files.

    A failure arrives with its type, its traceback, its cause and its context. Any of these that cannot be pickled is
    replaced by a `TypeError` that has its type's name and its text. Anything that is not an `Exception`, such as
    `SystemExit`, arrives as a `RuntimeError` that says so, because it must not end the caller's program. It may come
    from `fn`, from importing its module, or from pickling.

    A worker imports the main module of the program. So the code that starts the program has to stand under
    ``if __name__ == "__main__":``, or each worker would start it again.

    **Cancellation** kills the process, and waits until it is gone. The work is lost, and nothing is left running.

    Args:
        fn: a function that is not async, defined at the top level of a module; or a method, a `functools.partial` or
            another callable object, if its class is defined so.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. If the process dies under the call, it
        raises a `trio_parallel.BrokenWorkerError` that says how.

    Raises:
        TypeError: immediately, if `fn` is not callable, or is async; from the call, if it shows only then.
        ValueError: immediately, if `fn` is a lambda or defined inside a function.
        ImportError: immediately, if `trio-parallel` is not installed.

    Example::

        thumbnails = await fanout.map(fanout.in_process(shrink), pictures)  # `shrink` is a plain function of a module
    """
    check_blocking(fn, "in_process")
    _check_importable(fn)
    trio_parallel = _import_trio_parallel()
    blocking = Blocking(fn, "in_process")
    name = blocking.__name__

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_in_trio(name)
        _check_main_is_imported()
        try:
            result: bytes = await trio_parallel.run_sync(
                _run, name, PickledCall(blocking, pickler().dumps, args, kwargs), kill_on_cancel=True
            )
        except trio_parallel.BrokenWorkerError as exc:
            # Its last argument is the process. That says everything, but not in words, and cannot be pickled. So it is
            # not kept as the context of what is raised, either.
            if not (exc.args and hasattr(exc.args[-1], "exitcode")):
                raise  # by an argument that was being pickled
            end = _cause_of_death(exc.args[-1].exitcode)
        else:
            value: R = unpickled(result, blocking, pickler().loads).unwrap()
            return value
        msg = f"the worker process that ran {name} {end}"
        raise trio_parallel.BrokenWorkerError(msg)

    return call


def _run(name: str, call: bytes) -> bytes:
    """Run a call in a worker process. Returns its outcome, pickled: what is raised here is trio-parallel's own."""
    try:
        outcome: bytes = pickler().dumps(Value(run_pickled_call(call, "in_process")))
    except BaseException as exc:  # noqa: ASYNC103, BLE001  # no task of Trio's runs here
        outcome = pickler().dumps(Error(portable(as_failure(exc, name, "in_process"), best_trial)))
    return outcome


def _check_importable(fn: object) -> None:
    """Raise `ValueError` if `fn` is a lambda or a local function, or has one in it, or is of a local class."""
    if isinstance(fn, functools.partial):
        for part in (fn.func, *fn.args, *fn.keywords.values()):
            if callable(part):
                _check_importable(part)
        return
    function = fn.__func__ if isinstance(fn, MethodType) else fn
    for part in (function, attribute_of(fn, "__self__", object)):  # of a bound method, both are needed
        name = (part if isinstance(part, (FunctionType, type)) else type(part)).__qualname__
        if "<locals>" in name or "<lambda>" in name:
            msg = (
                "fn of in_process must be a function that a worker process can import by its name, got "
                f"{name}: define it at the top level of a module"
            )
            raise ValueError(msg)


def _check_main_is_imported() -> None:
    """Exit if this is a worker that imports the main module, which has started its program again.

    No worker can start others yet, so multiprocessing raises an exception there. But that comes with the traceback of a
    whole program, once for each worker; and if the program catches it, it goes on, and does its work again. This
    process is only there to import the module. The parent gets a `BrokenWorkerError`.
    """
    import multiprocessing  # noqa: PLC0415  # not needed to import this package, and imported by trio-parallel

    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing asks itself
        sys.exit(f"in_process was called while a worker process imported the main module: {_MAIN_GUARD}")


def _import_trio_parallel() -> Any:  # it ships no types
    try:
        return importlib.import_module("trio_parallel")
    except ImportError as exc:
        msg = "in_process needs trio-parallel: pip install trio-fanout[process]"
        raise ImportError(msg, name="trio_parallel") from exc


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode == 1:  # that of Python, for an exception: `fn` cannot cause it other than by `os._exit`
        return f"died with exit code 1. If it died as it started: {_MAIN_GUARD}"
    if exitcode is None or exitcode >= 0:
        return f"died with exit code {exitcode}"
    return f"was killed by {signal_name(-exitcode)}"
