"""A limit for calls rather than for items: `cap`.

A cap is a few tokens and a line of calls that wait for one. Three classes know who holds a token and who is next:

* `Count`, for a limit that is a number;
* `Borrowed`, for a `trio.CapacityLimiter` of the caller's;
* `Adaptive`, where the cap follows what a server takes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from ._adaptive import Adaptive, adaptive_on
from ._arguments import NotAwaitable, check_awaitable, check_callback, check_function, describe, name_of
from ._core.limits import check_limit
from ._core.nursery import CALL_FRAMES, reserve
from ._naming import named_like
from ._opening import check_in_trio
from ._overload import Size
from ._states import states_of
from ._tokens import Borrowed, Count
from ._units import units_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from trio.lowlevel import Task

    from ._tokens import Tokens

P = ParamSpec("P")
R = TypeVar("R")


def cap(
    fn: Callable[P, Awaitable[R]],
    limit: float | trio.CapacityLimiter,
    *,
    key: Callable[..., Hashable] | None = None,
    overloaded: Callable[[Exception], bool | float | None] | None = None,
    weight: Callable[..., float] | None = None,
) -> Callable[P, Awaitable[R]]:
    """Make an async function that calls `fn`, with no more than `limit` calls running at once.

    The limit of `map` and of the other calls says how many items are in progress. An item may spend most of its time
    waiting: to try again, for its turn at a slow host, for a server that asked to be left alone. `cap` bounds only the
    calls: an item that waits keeps its place in the run, but holds no token that another item could use. Hence two
    numbers: how many items are in progress, and how many calls the server gets at once.

    Adapters compose. From the outside in: first the retries, so that a wait between attempts holds no token. Then the
    cap for each key, so that a call that waits for a slow host holds no token of the total. Then the cap for the total,
    `throttle`, so that calls leave at its rate, and the client::

        get = fanout.throttle(client.get, 50)  # at most 50 requests per second
        get = fanout.cap(get, 20)  # at most 20 at once, over all calls that use `get`
        get = fanout.cap(get, 2, key=host_of)  # and at most 2 of these to one host
        fetch = stamina.retry(on=httpx.HTTPError, attempts=5)(get)
        pages = await fanout.map(fetch, urls, limit=1_000)

    Calls get their tokens in the order in which they were made; with a `key`, in that order for each key. The bound
    holds over all calls of the function that this returns, from any task. Each Trio run has a bound of its own.

    **Weight**: with `weight`, the calls that are running weigh at most `limit` in total: two large files, or twenty
    small ones.
    Weights are added up as floats, but without the drift of a long sum: ten times 0.1 fits into 1. A call that is
    heavier than `limit` runs alone. A light call never overtakes a heavy one, and one that weighs 0 waits its turn,
    too. So a heavy call is not kept waiting forever, and while it waits, part of the limit may go unused.

    **Overload**: with `overloaded`, the cap adapts to what a server takes. It starts at 10, or at `limit` if that is
    lower. Until the first sign of overload it doubles each time that as many calls as it allows have succeeded and one
    had to wait for a token; after that it grows by 1. It is never above `limit`. A sign of overload cuts it to 7/10 of
    the tokens in use. Then only calls that got their token after the cut count for another cut or for growth, so fifty
    refusals of one burst are one cut. (Additive increase and multiplicative decrease are how TCP avoids congestion, RFC
    5681.) If the server named a time, no call gets a token before it has passed, and the calls that waited then start
    within the cap, not all at once. The refused call fails all the same: retrying is up to the retries outside.

    Three cuts in a row, without a success in between, are a *block*: the server is down, or what it allows in a minute
    is used up. The cap is then 1, and calls start ever farther apart: after 1 second, then 2, 4 and 8, or an eighth of
    the time that the block has lasted, if that is longer. The first success ends the block. If it is the first success
    of all, the cap doubles again, as at first. Retries need enough attempts, and a long enough wait between them, to
    last until the block ends. If a server counts requests by the second or the minute, and you know the number, use
    `throttle`.

    **Cancellation**: a call that is cancelled while it waits uses up nothing, and those behind it move up. However a
    call ends, its token is put back. The wait is part of the call, so an `item_timeout` includes it. A time limit for
    the work alone is `trio.fail_after` inside `fn`.

    Args:
        fn: an async function.
        limit: how many calls may run at once: an int of 1 or more, `math.inf`, or, without a `key` or a `weight`, a
            `trio.CapacityLimiter` to share. With `overloaded`, its `total_tokens` are lowered to 10 by the first call,
            and follow the cap: all who use the limiter are slowed down together. Whatever you assign to `total_tokens`
            becomes the cap immediately, and is the most that the cap grows to; 0 pauses the calls. Assigning to it also
            ends a block, when the next call starts or ends.
        key: a function that is not async. It is called with the arguments of each call, in its task, and returns
            something hashable, such as the host of a URL. Each key has a limit and a cap of its own, and costs memory
            only while a call holds or awaits its tokens, and while a server is to be left alone.
        overloaded: a function that is not async. It is called with each `Exception` that `fn` raises, and returns
            whether it is a sign of overload: False or None if not; True if there were too many calls at once; a number
            of seconds if the server is to be left alone for that long. Zero, a negative number and NaN count as True.
        weight: a function that is not async. It is called with the arguments of each call, in its task, before the call
            waits, and returns what the call weighs, such as the megabytes of a file: a finite int or float of 0 or
            more. Without it, each call weighs 1. It does not go together with `overloaded`.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. It raises what `fn`, `key`, `weight`
        or `overloaded` raises (the last with the exception of `fn` as its context); `TypeError` if `key`, `weight` or
        `overloaded` returns something of the wrong type; `ValueError` if `weight` returns a number that is out of
        range; and `RuntimeError` if the calling task, or a task above it, holds a token of the same limit (with a
        `key`: of the same key): the call could wait for itself.

    Raises:
        TypeError: immediately, if an argument is of the wrong type; `limit` is a limiter and there is a `key` or a
            `weight`; or there are both `overloaded` and `weight`.
        ValueError: immediately, if `limit` is below 1.

    Example::

        def busy(exc):
            if isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code in (429, 503):
                seconds = exc.response.headers.get("Retry-After", "")
                return float(seconds) if seconds.isdecimal() else True
            return False

        async def get(url):
            return (await client.get(url)).raise_for_status()

        ask = fanout.cap(get, 100, overloaded=busy)
        fetch = stamina.retry(on=httpx.HTTPError, attempts=10)(ask)
        pages = await fanout.map(fetch, urls, limit=1_000)

        def megabytes(path):
            return path.stat().st_size / 1e6

        resize_some = fanout.cap(fanout.in_thread(resize), 500, weight=megabytes)  # 500 MB of pictures at once
        await fanout.do(resize_some, paths, limit=100)
    """
    check_function(fn)
    check_limit(limit)
    check_callback(key, "key")
    check_callback(overloaded, "overloaded", hint=": pass a function such as lambda exc: isinstance(exc, OSError)")
    check_callback(weight, "weight")
    _check_combination(limit, key, overloaded, weight)
    states_in_run = states_of(key, functools.partial(_make_tokens, limit, adapts=overloaded is not None))

    name = name_of(fn)

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_in_trio(name)
        states = states_in_run.get()
        units = 1 if weight is None else units_of(weight, args, kwargs, "weight")
        reserve(CALL_FRAMES)
        task = trio.lowlevel.current_task()
        kept = states.enter(args, kwargs)
        try:
            tokens = kept.state
            _check_none_held(tokens, task, fn)
            epoch = await tokens.acquire(task, units)
            try:
                awaitable = fn(*args, **kwargs)
                check_awaitable(awaitable)
                result = await awaitable
            except Exception as exc:
                if overloaded is not None and not isinstance(exc, NotAwaitable):
                    tokens.failed(epoch, overloaded(exc))
                raise
            else:
                tokens.succeeded(epoch)
                return result
            finally:
                tokens.release(task)
        finally:
            states.leave(kept)
            del task  # this frame is in the traceback of a failure, and a task leads to all that it runs

    return call


def _check_combination(limit: object, key: object, overloaded: object, weight: object) -> None:
    """Raise `TypeError` if the arguments, each of which is right, do not go together."""
    if isinstance(limit, trio.CapacityLimiter):
        for name, value in (("key", key), ("weight", weight)):
            if value is not None:
                msg = f"limit must be an int of 1 or more or math.inf where there is a {name}, got {describe(limit)}"
                raise TypeError(msg + (": each key has a limit of its own" if name == "key" else ""))
    if weight is not None and overloaded is not None:
        msg = f"overloaded must be None where there is a weight, got {describe(overloaded)}"
        raise TypeError(msg)


def _check_none_held(tokens: Tokens, task: Task, fn: object) -> None:
    """Raise `RuntimeError` if `task`, or one above it, holds one of the tokens."""
    holder = task
    while not tokens.holds(holder):
        if holder.parent_nursery is None:
            return
        holder = holder.parent_nursery.parent_task
    msg = (
        f"{name_of(fn)} was called under its own cap: {holder!r} holds a token of the same limit, so this call "
        "could wait for itself; cap only the inner or only the outer call, or give each a limit of its own"
    )
    raise RuntimeError(msg)


def _make_tokens(limit: float | trio.CapacityLimiter, *, adapts: bool) -> Tokens:
    if isinstance(limit, trio.CapacityLimiter):
        return adaptive_on(limit) if adapts else Borrowed(limit)
    if not adapts:
        return Count(limit)
    size = Size(limit)
    return Adaptive(trio.CapacityLimiter(size.now), size)
