"""Blocking functions in worker threads: `in_thread`."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from ._arguments import check_blocking, check_bool, name_of
from ._naming import named_like
from ._opening import check_in_trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")


def in_thread(fn: Callable[P, R], *, abandon_on_cancel: bool = False) -> Callable[P, Awaitable[R]]:
    """Make an async function out of a blocking one, by calling it in a worker thread.

    The thread is one of Trio's: context variables have the values that they have in the calling task,
    `trio.from_thread` works inside, and exceptions arrive as they were raised. The limit of the call that the result is
    passed to decides how many threads run at once: ``map(in_thread(fn), items, limit=100)`` runs 100 of them. Trio's
    own limit of 40 threads does not apply, and these threads do not count towards it.

    **Cancellation**: a thread cannot be interrupted, so by default a cancelled call waits until `fn` ends, and returns
    or raises what `fn` did, even after an `item_timeout`. With `abandon_on_cancel` the call is cancelled immediately,
    and `fn` continues in the background; whatever it returns or raises is lost. Either way `fn` can find out, with
    `trio.from_thread.check_cancelled`. A call that is cancelled before it starts never calls `fn`.

    Note:
        Abandoned work no longer counts against the limiter. New items start while abandoned threads still run, so more
        threads can be running than the limit says.

    Args:
        fn: a function that is not async. It should be one that waits: functions that compute keep each other from
            running, and `in_process` is for them.
        abandon_on_cancel: whether cancellation leaves `fn` behind. By default it is waited for.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it.

    Raises:
        TypeError: immediately, if `fn` is not callable, or is async, or if `abandon_on_cancel` is not a bool.

    Example::

        def size(path):
            return path.stat().st_size

        sizes = await fanout.map(fanout.in_thread(size), paths, limit=100)
    """
    check_blocking(fn, "in_thread")
    check_bool(abandon_on_cancel, "abandon_on_cancel")
    name = name_of(fn)

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_in_trio(name)
        return await trio.to_thread.run_sync(
            functools.partial(fn, *args, **kwargs),
            abandon_on_cancel=abandon_on_cancel,
            # One that never binds, instead of Trio's default; not shared, as limiters belong to a Trio run.
            limiter=trio.CapacityLimiter(math.inf),
            thread_name=f"{name} from {trio.lowlevel.current_task().name}",
        )

    return call
