"""Rate limiting: `throttle`."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from ._adapters import check_not_async, named_like, states_of
from ._arguments import check_awaitable, check_count, check_function, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

P = ParamSpec("P")
R = TypeVar("R")


def throttle(
    fn: Callable[P, Awaitable[R]],
    rate: float,
    *,
    per: float = 1.0,
    burst: int = 1,
    key: Callable[..., Hashable] | None = None,
) -> Callable[P, Awaitable[R]]:
    """Make an async function that calls `fn` no more than `rate` times every `per` seconds.

    The calls are spaced evenly, ``per / rate`` seconds apart. The first starts at once. Time in which none starts is
    saved up, for up to `burst` calls in a row that need not wait for each other; ``burst=1`` saves up nothing. This is
    the generic cell rate algorithm (ITU-T Recommendation I.371, in its form of virtual scheduling), by Trio's clock.

    The bound holds over all calls of the function that this returns, from whatever task; they start in the order in
    which they were made. With a `key`, it holds for each key by itself, and so does the order. Each Trio run counts
    for itself. A rate says how many calls start; `cap` bounds how many are at work, and the two compose: if both are
    wanted, put `throttle` inside of `cap`, next to the client, so that requests leave at the rate.

    **Cancellation**: a call that is cancelled while it waits uses up nothing: those behind it move up. The wait is
    part of the call, so that an `item_timeout` includes it. A time limit for the request alone is `trio.fail_after`
    inside of `fn`.

    Args:
        fn: an async function.
        rate: how many calls may start every `per` seconds. Finite and above 0; it need not be whole.
        per: seconds that `rate` counts for, 1 by default. Finite and above 0.
        burst: how many calls may start together after a pause, 1 or more. By default none start together.
        key: a function that is not async. It is called with the arguments of each call, in its task, and returns
            something hashable, such as the host of a URL. Each key has a rate and a burst of its own, and costs memory
            only while a call waits and until its burst is saved up again.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. It raises what `key` raises, and
        `TypeError` if what `key` returns is not hashable.

    Raises:
        TypeError: at once, if an argument is of the wrong type.
        ValueError: at once, if `rate`, `per` or `burst` is out of range.

    Example::

        ask = fanout.throttle(fetch, 100, per=60, burst=10)  # a server that allows 100 requests a minute
        pages = await fanout.map(ask, urls, limit=8)

        get = fanout.throttle(fetch, 2, key=lambda url: urlsplit(url).hostname)  # 2 requests a second for each host
    """
    check_function(fn)
    _check_positive(rate, "rate")
    _check_positive(per, "per")
    check_count(burst, "burst")
    if key is not None:
        check_not_async(key, "key")
    states_in_run = states_of(key, lambda: _Line(rate, per, burst))

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        states = states_in_run.get()
        kept = states.enter(args, kwargs)
        try:
            await kept.state.wait_for_turn()
        finally:
            states.leave(kept)
        awaitable = fn(*args, **kwargs)
        check_awaitable(awaitable)
        return await awaitable

    return call


class _Line:
    """Where the calls of one Trio run, or those with one key, wait in order for their time to start.

    The algorithm knows one number, the time when the next call would start if all kept an even distance. A call may
    be ahead of it by what can be saved up. Here that time is kept as a time to count from and the number of calls
    since, as adding up intervals would add up their rounding errors.
    """

    __slots__ = ("_calls", "_lock", "_per", "_rate", "_saved", "_since")

    def __init__(self, rate: float, per: float, burst: int) -> None:
        # An int that no float can hold would make the products below an `OverflowError`.
        self._rate = float(rate)
        self._per = float(per)
        self._saved = min(burst - 1, sys.maxsize)
        self._since = -math.inf
        self._calls = 0
        self._lock = trio.Lock()  # first come, first served

    async def wait_for_turn(self) -> None:
        """Wait until a call may start, and count it."""
        # The first in the line holds the lock while it sleeps. Cancelled, it lets go of it, and nothing was counted.
        async with self._lock:
            due = self._time_of(self._calls - self._saved)
            if trio.current_time() < due:
                await trio.sleep_until(due)
            now, even = trio.current_time(), self._time_of(self._calls)
            # Late: the time lost is not made up for, or calls would be too close to each other after a pause.
            if now > even:
                self._since, self._calls = now, 0
            self._calls += 1

    def expires(self) -> float:
        """The time at which all that may be saved up is saved up."""
        return self._time_of(self._calls)

    def _time_of(self, call: int) -> float:
        after = call * self._per
        # The quotient first would round twice. It is right where the product is beyond what a float can hold.
        after = call * (self._per / self._rate) if math.isinf(after) else after / self._rate
        return self._since + after


def _check_positive(number: object, argument: str) -> None:
    takes = f"{argument} must be a finite number above 0, got {describe(number)}"
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(takes)
    if not 0 < number <= sys.float_info.max:  # written so that NaN fails
        raise ValueError(takes)
