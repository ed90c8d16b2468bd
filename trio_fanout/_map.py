"""One function over many items, and many functions over one: `map`, `do` and `fan_out`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import trio

from ._arguments import check_function, check_functions, check_iterable, check_seconds, name_of
from ._core.feeding import run_all
from ._core.limits import DEFAULT_LIMIT, Tokens, check_limit, check_not_held
from ._core.run import Run
from ._core.sources import FedQueue, Pull, is_async
from ._ledgers import Ledger, start_ledger
from ._opening import check_in_trio
from ._policies import FAIL_FAST, Collect, FailFast, FirstSuccess, Settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable

    from outcome import Outcome

    from ._core.ending import Sink

T = TypeVar("T")
R = TypeVar("R")


@overload
async def map(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FailFast | Collect = ...,
    item_timeout: float | None = ...,
) -> list[R]: ...
@overload
async def map(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: Settle,
    item_timeout: float | None = ...,
) -> list[Outcome[R]]: ...
@overload
async def map(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FirstSuccess,
    item_timeout: float | None = ...,
) -> R: ...
async def map(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle | FirstSuccess = FAIL_FAST,
    item_timeout: float | None = None,
) -> Any:
    """Run an async function on many items, at most `limit` at once, and return the results by index.

    Args:
        fn: an async function of one item. It may also be a plain function that returns something to await.
        items: an iterable or an async iterable; an object that is both is treated as async. It is read lazily: there
            are never more than `limit` items taken and unfinished, and they start in its order. An async iterable is
            read in the calling task, and an async generator is closed there when the call ends early. A plain generator
            is closed then, too. Other iterators belong to the caller and are left open.
        limit: how many items may run at once: an int of 1 or more, `math.inf`, or a `trio.CapacityLimiter` to share.
            Defaults to 40. A number makes a limiter that lives as long as the call. With a shared limiter, each running
            item holds one token, borrowed by the task that runs it; items queue for tokens first come, first served,
            alongside all other users of the limiter. Its `total_tokens` may change during the call; 0 pauses it.
        policy: what a failure does, and what is returned: `FailFast()`, the default, `Collect()`, `Settle()` or
            `FirstSuccess()`. A failure is an `Exception` that escapes from an item.
        item_timeout: seconds that each item may take, counted from when `fn` is called; a number above 0. One that
            takes longer is cancelled, and fails with `trio.TooSlowError`. By default there is no such limit. For all
            items together, use ``with trio.fail_after(...)``.

    Returns:
        Under `FailFast` and `Collect` the list of the results, where ``result[i]`` belongs to item ``i``, whatever
        order the items finished in. Under `Settle` a list of outcomes. Under `FirstSuccess` the first result.

    Raises:
        Exception: under `FailFast`, the failure with the lowest index, unwrapped.
        FanOutError: under `Collect`, if any item failed; under `FirstSuccess`, if all did.
        ValueError: under `FirstSuccess`, if there were no items; or an argument is out of range.
        TypeError: an argument is of the wrong type, or `fn` is not async. Raised directly, whatever the policy; never
            recorded as an item's failure.
        RuntimeError: the calling task, or one above it, holds a token of `limit`, and so could wait for itself.

    If `items` raises, the items in flight are cancelled and its exception propagates, with the failures so far chained
    to it.

    **Cancellation**: the call is always a checkpoint, even with no items or with functions that never wait; with those,
    it lets other tasks in and notices a cancellation every few milliseconds. When it is cancelled, so are the items in
    flight, and no other starts. All have ended when it returns or raises. Items are isolated as tasks are: none sees
    a context variable that another one has set.

    Example::

        async def fetch(url):
            ...

        pages = await fanout.map(fetch, urls, limit=20)
    """
    check_in_trio("map")
    check_function(fn)
    ledger = start_ledger(policy, (FailFast, Collect, Settle, FirstSuccess), "map")
    return await _run(fn, items, ledger, ledger, limit, item_timeout, f"map({name_of(fn)})")


async def do(
    fn: Callable[[T], Awaitable[object]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect = FAIL_FAST,
    item_timeout: float | None = None,
) -> None:
    """Run an async function on many items, at most `limit` at once, and discard the results.

    It is `map` without the results: memory stays flat however many items there are, and the source may be endless.

    Args:
        fn: as for `map`. Its return value is discarded.
        items: as for `map`.
        limit: as for `map`.
        policy: `FailFast()`, the default, or `Collect()`, whose `FanOutError` then has no `results`.
        item_timeout: as for `map`.

    Raises:
        Exception, FanOutError, TypeError, ValueError, RuntimeError: as for `map`.

    **Cancellation**: as for `map`.

    Example::

        await fanout.do(save, pages, limit=4)
    """
    check_in_trio("do")
    check_function(fn)
    ledger = start_ledger(policy, (FailFast, Collect), "do")
    await _run(fn, items, _Discard(ledger), ledger, limit, item_timeout, f"do({name_of(fn)})")


@overload
async def fan_out(
    fns: Iterable[Callable[[T], Awaitable[R]]],
    value: T,
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FailFast | Collect = ...,
    item_timeout: float | None = ...,
) -> list[R]: ...
@overload
async def fan_out(
    fns: Iterable[Callable[[T], Awaitable[R]]],
    value: T,
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: Settle,
    item_timeout: float | None = ...,
) -> list[Outcome[R]]: ...
@overload
async def fan_out(
    fns: Iterable[Callable[[T], Awaitable[R]]],
    value: T,
    *,
    limit: float | trio.CapacityLimiter = ...,
    policy: FirstSuccess,
    item_timeout: float | None = ...,
) -> R: ...
async def fan_out(
    fns: Iterable[Callable[[T], Awaitable[R]]],
    value: T,
    *,
    limit: float | trio.CapacityLimiter = DEFAULT_LIMIT,
    policy: FailFast | Collect | Settle | FirstSuccess = FAIL_FAST,
    item_timeout: float | None = None,
) -> Any:
    """Run many async functions on one value, at most `limit` at once, and return the results by index.

    Args:
        fns: a finite iterable of async functions, each of which is called with `value`. All are checked before any
            starts.
        value: what they are called with.
        limit: as for `map`.
        policy: as for `map`.
        item_timeout: as for `map`, for each function.

    Returns:
        What `map` returns, where ``result[i]`` belongs to ``fns[i]``.

    Raises:
        Exception, FanOutError, TypeError, ValueError, RuntimeError: as for `map`.

    **Cancellation**: as for `map`.

    Example::

        exact, semantic, judged = await fanout.fan_out([find_exact, find_semantic, judge], question)
    """
    check_in_trio("fan_out")
    ledger = start_ledger(policy, (FailFast, Collect, Settle, FirstSuccess), "fan_out")
    check_iterable(fns, "fns", "an iterable of async functions")
    fns = list(fns)
    check_functions(fns, "fns")

    def call(fn: Callable[[T], Awaitable[R]]) -> Awaitable[R]:
        trio.lowlevel.current_task().name = f"fan_out({name_of(fn)})"
        return fn(value)

    return await _run(call, fns, ledger, ledger, limit, item_timeout, "fan_out")


class _Discard:
    """A sink that keeps no results."""

    __slots__ = ("cancelled", "conclude", "failed", "label")

    def __init__(self, ledger: Ledger) -> None:
        self.failed = ledger.failed
        self.cancelled = ledger.cancelled
        self.label = ledger.label
        self.conclude = ledger.conclude

    def succeeded(self, index: int, item: object, value: object, /) -> None:
        pass


async def _run(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    sink: Sink[T, R],
    ledger: Ledger,
    limit: float | trio.CapacityLimiter,
    item_timeout: float | None,
    name: str,
) -> Any:
    """Run `fn` over all `items` into `sink`, and return or raise what `ledger` makes of it.

    It is a checkpoint: each worker looks for a cancellation as it starts, as does the task that reads an async source,
    and the nursery lets other tasks run.
    """
    check_limit(limit)
    check_seconds(item_timeout, "item_timeout")
    source: Pull[T] | FedQueue[T] = FedQueue(items) if is_async(items) else Pull(items)
    check_not_held(limit)
    run = Run(fn, source, sink, Tokens(limit), name, item_timeout=item_timeout, move_on_after=ledger.move_on_after)
    await run_all(run, source)
    return ledger.result(run.count(), run.was_started)
