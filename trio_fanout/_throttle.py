"""No more than so many starts in so much time: `throttle`."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import trio

from ._adapters import PerRun, named_like
from ._core.arguments import check_awaitable, check_count, check_function, describe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
R = TypeVar("R")


def throttle(
    fn: Callable[P, Awaitable[R]], rate: float, *, per: float = 1.0, burst: int = 1
) -> Callable[P, Awaitable[R]]:
    """Make an async function that calls `fn` no more than `rate` times every `per` seconds.

    The calls are spaced evenly, ``per / rate`` seconds apart. The first starts at once. Time in which none starts is
    saved up, for up to `burst` calls in a row that need not wait for each other; ``burst=1`` saves up nothing. This is
    the generic cell rate algorithm (ITU-T Recommendation I.371, in its form of virtual scheduling), by Trio's clock.

    The bound holds over all calls of the function that this returns, from whatever task; they start in the order in
    which they were made. Each Trio run counts for itself. Where both are wanted, a limit says how many calls run at
    once, and this says how many start.

    **Cancellation**: a call that is cancelled while it waits uses up nothing: those behind it move up. The wait is
    part of the call, so that an `item_timeout` includes it.

    Args:
        fn: an async function.
        rate: how many calls may start every `per` seconds. Finite and above 0; it need not be whole.
        per: seconds that `rate` counts for, 1 by default. Finite and above 0.
        burst: how many calls may start together after a pause, 1 or more. By default none start together.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it.

    Raises:
        TypeError: at once, if an argument is of the wrong type.
        ValueError: at once, if `rate`, `per` or `burst` is out of range.

    Example::

        ask = fanout.throttle(fetch, 100, per=60, burst=10)  # a server that allows 100 requests a minute
        pages = await fanout.map(ask, urls, limit=8)
    """
    check_function(fn)
    _check_positive(rate, "rate")
    _check_positive(per, "per")
    check_count(burst, "burst")
    lines = PerRun(lambda: _Line(rate, per, burst))

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        await lines.get().wait_for_turn()
        awaitable = fn(*args, **kwargs)
        check_awaitable(awaitable)
        return await awaitable

    return call


class _Line:
    """Where the calls of one Trio run wait, in order, for their time to start.

    The algorithm knows one number, the time when the next call would start if all kept an even distance. A call may
    be ahead of it by what can be saved up. Here that time is kept as a time to count from and the number of calls
    since, as adding up intervals would add up their rounding errors.
    """

    __slots__ = ("_calls", "_lock", "_per", "_rate", "_saved", "_since")

    def __init__(self, rate: float, per: float, burst: int) -> None:
        self._rate: Final = rate
        self._per: Final = per
        self._saved: Final = burst - 1
        self._since = -math.inf
        self._calls = 0
        self._lock: Final = trio.Lock()  # first come, first served

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

    def _time_of(self, call: int) -> float:
        return self._since + call * self._per / self._rate


def _check_positive(number: object, argument: str) -> None:
    takes = f"{argument} must be a finite number above 0, got {describe(number)}"
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(takes)
    if not 0 < number <= sys.float_info.max:  # so written that NaN fails
        raise ValueError(takes)
