"""CPU-bound functions in worker processes: `in_process`."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._adapters import check_blocking, named_like
from ._arguments import name_of
from ._signals import signal_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")


def in_process(fn: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    """Make an async function out of a CPU-bound one, by calling it in a worker process.

    The processes are those of `trio-parallel`, which the extra ``process`` installs. They are started when they are
    needed, kept for the next call, and at most as many as there are CPUs work at once, whatever the limit of the call
    that the result is passed to: that is `trio_parallel.current_default_worker_limiter`, where it can be changed too.
    Their start, their time to live and so on are set by `trio_parallel.configure_default_context` and `cache_scope`.

    What crosses to the process and back is pickled: `fn` (by its module and name, so that it has to be importable
    there), its arguments, what it returns and what it raises. A failure keeps its type and its traceback. What cannot
    be pickled, in either direction, is the failure of that call. Nothing else crosses: no context variables, no global
    state, no open files.

    **Cancellation** kills the process, and waits until it is gone. The work is lost, and nothing is left running.

    Args:
        fn: a function that is not async.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. It raises
        `trio_parallel.BrokenWorkerError`, which says how, when the process dies under the call.

    Raises:
        TypeError: at once, if `fn` cannot be called, or is async.
        ImportError: at once, if `trio-parallel` is not installed.

    Example::

        thumbnails = await fanout.map(fanout.in_process(shrink), pictures)  # `shrink` is a plain function of a module
    """
    check_blocking(fn, "in_process")
    trio_parallel = _import_trio_parallel()
    name = name_of(fn)

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = functools.partial(fn, *args, **kwargs)
        try:
            result: R = await trio_parallel.run_sync(bound, kill_on_cancel=True)
        except trio_parallel.BrokenWorkerError as exc:
            # Its last argument is the process, which is all there is to know, but not for reading nor for pickling. So
            # it is not kept as the context of what is raised, either.
            end = _cause_of_death(exc.args[-1].exitcode)
        else:
            return result
        msg = f"the worker process that ran {name} {end}"
        raise trio_parallel.BrokenWorkerError(msg)

    return call


def _import_trio_parallel() -> Any:  # it ships no types
    try:
        return importlib.import_module("trio_parallel")
    except ImportError as exc:
        msg = "in_process needs trio-parallel: pip install trio-fanout[process]"
        raise ImportError(msg, name="trio_parallel") from exc


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"died with exit code {exitcode}"
    return f"was killed by {signal_name(-exitcode)}"
