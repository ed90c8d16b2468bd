"""An item: what its exception means, its time limit, what it leaves behind in its task."""

from __future__ import annotations

import math
import types
from operator import is_
from typing import TYPE_CHECKING, TypeVar

import trio

from .._arguments import NotAwaitable, check_awaitable
from .exceptions import holds_cancelled, is_group, members_of, split_cancelled
from .scopes import Scopes

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

T = TypeVar("T")
R = TypeVar("R")

# To type checkers just a type: to know more than that the function returned an awaitable would not help them.
COROUTINE: type = types.CoroutineType


# What an exception means


def split_failure(exc: BaseException) -> tuple[Exception | None, BaseException | None]:
    """What of `exc` is the item's failure, and what is to be raised; each may be None.

    A group that mixes a cancellation with errors is both. A cancellation alone is not a failure, nor is anything that
    holds a `KeyboardInterrupt`, for example.
    """
    if type(exc) is NotAwaitable:  # the caller's mistake
        return None, TypeError(f"{trio.lowlevel.current_task().name}: {exc}")
    if isinstance(exc, Exception):
        return exc, None
    cancelled, rest = split_cancelled(exc)
    return (rest, cancelled) if isinstance(rest, Exception) else (None, exc)


def came_out_of_cancellation(exc: BaseException) -> bool:
    """Whether `exc` came out of a cancellation: of a group, each member must have."""
    return _came_out_of_cancellation(exc, set())


def _came_out_of_cancellation(exc: BaseException, seen: set[int]) -> bool:
    link: BaseException | None = exc
    # A member that is raised out of its group has that group as its context: `seen` is for the whole search.
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if holds_cancelled(link):
            return True
        if is_group(link) and all(_came_out_of_cancellation(member, seen) for member in members_of(link)):
            return True
        link = link.__context__
    return False


def without_worker(exc: Exception) -> Exception:
    """Take the worker's frame off a traceback: of no use to a reader, and a way from the exception to the whole run."""
    tb = exc.__traceback__
    BaseException.with_traceback(exc, tb and tb.tb_next)  # its own `with_traceback` may do anything
    return exc


# Its time limit


def with_timeout(fn: Callable[[T], Awaitable[R]], seconds: float) -> Callable[[T], Awaitable[R]]:
    """Limit the time of each call of `fn`, counted from when it is called."""

    def call(item: T) -> Awaitable[R]:
        deadline = trio.current_time() + seconds
        awaitable = fn(item)
        check_awaitable(awaitable)
        return _finish_by(deadline, seconds, awaitable)

    return call


async def _finish_by(deadline: float, seconds: float, awaitable: Awaitable[R]) -> R:
    """Await with a deadline; raise `trio.TooSlowError` if it passed.

    It is `trio.fail_at`, but also works with exceptions whose attributes are read-only, and with items that leave a
    cancel scope open. To close the scope of the deadline around that one would corrupt Trio's stack of scopes, so it is
    left open too, without its deadline: the worker is not used again.
    """
    scope = trio.CancelScope(deadline=deadline)
    scope.__enter__()
    scopes = Scopes(trio.lowlevel.current_task())
    try:
        value = await awaitable
    except BaseException as exc:  # noqa: ASYNC103  # as `trio.fail_at` does
        if scopes.changed():
            scope.deadline = math.inf
            if not (scope.cancel_called and isinstance(exc, trio.Cancelled)):
                raise
        elif not scope.__exit__(type(exc), exc, exc.__traceback__):
            raise
    else:
        if scopes.changed():
            scope.deadline = math.inf
        else:
            scope.__exit__(None, None, None)
        return value
    # Not where the Cancelled is being handled: what has one as its context counts as a consequence of a cancellation.
    msg = f"took longer than item_timeout={seconds!r}"
    raise trio.TooSlowError(msg)


# What it leaves behind in its task


def same_context(a: contextvars.Context, b: contextvars.Context) -> bool:
    """Whether two contexts hold the same variables with the same objects.

    Not by `==`, which calls that of the values: it can raise, and can hold for two different lists.
    """
    return len(a) == len(b) and all(map(is_, a, b)) and all(map(is_, a.values(), b.values()))


def switch_context(task: Task, context: contextvars.Context) -> bool:
    """Have `task` see the variables of `context` from its next step, as in `trio.from_thread`. False if it does now."""
    if not (context or task.context) or same_context(context, task.context):
        return False
    task.context = context.copy()
    return True
