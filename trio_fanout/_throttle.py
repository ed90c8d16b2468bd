"""Rate limiting: `throttle`."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from ._arguments import check_awaitable, check_callback, check_count, check_function, describe, name_of
from ._core.nursery import CALL_FRAMES, reserve
from ._naming import named_like
from ._opening import check_in_trio
from ._protection import protected
from ._states import states_of
from ._units import Total, units_of

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
    cost: Callable[..., float] | None = None,
) -> Callable[P, Awaitable[R]]:
    """Make an async function that calls `fn` no more than `rate` times every `per` seconds.

    The calls are spaced evenly, ``per / rate`` seconds apart. The first starts immediately. Unused time is saved up, so
    that up to `burst` calls may start back to back after a pause; with ``burst=1`` none is saved. This is the generic
    cell rate algorithm (ITU-T Recommendation I.371, in its virtual scheduling form), on Trio's clock.

    The bound holds over all calls of the function that this returns, from whatever task; they start in the order in
    which they were made. With a `key`, it holds for each key by itself, and so does the order. Each Trio run has a
    count of its own. A rate bounds how many calls start; `cap` bounds how many run at once. The two compose: if you
    need both, put `throttle` inside `cap`, next to the client, so that requests leave at the rate.

    **Cost**: with `cost`, `rate` and `burst` count units instead of calls, such as the tokens of a language model or
    the rows of a database. A call starts when as many units as it costs have been saved up. One that costs more than
    `burst` starts when all of `burst` has been saved up; the rest is a debt, which the calls after it wait for. Even a
    call that costs 0 waits in line, and until the debt is paid. In any window of ``w`` seconds, the calls that start
    cost at most ``rate * w / per`` plus `burst` or the largest cost, whichever is more. The sum is exact: the times do
    not drift, however many calls there are.

    **Cancellation**: a call that is cancelled while it waits uses up nothing, and those behind it move up. The wait is
    part of the call, so an `item_timeout` includes it. A time limit for the request alone is `trio.fail_after` inside
    `fn`.

    Args:
        fn: an async function.
        rate: how many calls may start every `per` seconds, or how many units they may cost. Finite and above 0; it need
            not be whole.
        per: seconds that `rate` counts for, 1 by default. Finite and above 0.
        burst: how many calls may start together after a pause, or how many units may be saved up: an int of 1 or more.
            By default no calls start together.
        key: a function that is not async. It is called with the arguments of each call, in its task, and returns
            something hashable, such as the host of a URL. Each key has a rate and a burst of its own, and costs memory
            only while a call waits and until its burst is saved up again.
        cost: a function that is not async. It is called with the arguments of each call, in its task, before the call
            waits, and returns how many units the call takes: a finite int or float of 0 or more. Without it, each call
            takes 1.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. It raises what `fn`, `key` or `cost`
        raises; `TypeError` if `key` returns something that is not hashable, or `cost` something that is not an int or a
        float; and `ValueError` if `cost` returns a number that is out of range.

    Raises:
        TypeError: immediately, if an argument is of the wrong type.
        ValueError: immediately, if `rate`, `per` or `burst` is out of range.

    Example::

        ask = fanout.throttle(fetch, 100, per=60, burst=10)  # a server that allows 100 requests per minute
        pages = await fanout.map(ask, urls, limit=8)

        get = fanout.throttle(fetch, 2, key=lambda url: urlsplit(url).hostname)  # 2 requests per second for each host

        def tokens(prompt):
            return len(prompt) / 4 + 500  # roughly: four characters to a token, and room for the answer

        ask_model = fanout.throttle(complete, 90_000, per=60, burst=5_000, cost=tokens)  # 90,000 tokens per minute
    """
    check_function(fn)
    _check_positive(rate, "rate")
    _check_positive(per, "per")
    check_count(burst, "burst")
    check_callback(key, "key")
    check_callback(cost, "cost")
    pace = (Fraction(per) / Fraction(rate)).as_integer_ratio()
    states_in_run = states_of(key, lambda: _Line(pace, burst))

    name = name_of(fn)

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_in_trio(name)
        states = states_in_run.get()
        units = 1 if cost is None else units_of(cost, args, kwargs, "cost")
        reserve(CALL_FRAMES)
        kept = states.enter(args, kwargs)
        try:
            await kept.state.wait_for_turn(units)
        finally:
            states.leave(kept)
        awaitable = fn(*args, **kwargs)
        check_awaitable(awaitable)
        return await awaitable

    return call


@protected()
class _Line:
    """Where the calls of one Trio run, or those with one key, wait in order for their time to start.

    The algorithm knows one number: the time at which all that can be saved up would be saved up, if no call came. A
    call may start ahead of it, by the time in which the units that it leaves behind are saved up. Here that time is
    kept as a time to count from, and the units that were missing then or have been taken since, as adding up intervals
    would add up their rounding errors. Debt needs no case of its own.
    """

    __slots__ = ("_burst", "_lock", "_missing", "_pace", "_since")

    def __init__(self, pace: tuple[int, int], burst: int) -> None:
        self._pace = pace  # seconds for each unit, as a fraction
        self._burst = burst
        self._since = -math.inf
        self._missing = Total(-burst)  # below 0 if some were saved up
        self._lock = trio.Lock()  # first come, first served

    async def wait_for_turn(self, units: float) -> None:
        """Wait until a call may start, and take its units."""
        # The first in the line holds the lock while it sleeps. Cancelled, it lets go of it, and nothing was taken.
        async with self._lock:
            due = self._time_of(min(units, self._burst))
            if trio.current_time() < due:
                await trio.sleep_until(due)
            now = trio.current_time()
            # Late: the time lost is not made up for, or calls would be too close to each other after a pause.
            if now > self.expires():
                self._since, self._missing = now, Total(-self._burst)
            self._missing.add(units)

    def expires(self) -> float:
        """The time at which all that may be saved up is saved up."""
        return self._time_of(self._burst)

    def _time_of(self, units: float) -> float:
        """The time at which this many units are saved up."""
        return self._since + self._missing.plus(units, *self._pace)


def _check_positive(number: object, argument: str) -> None:
    takes = f"{argument} must be a finite number above 0, got {describe(number)}"
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(takes)
    if not 0 < number <= sys.float_info.max:  # written so that NaN fails
        raise ValueError(takes)
