"""A limit for calls rather than for items: `cap`.

A cap is a few tokens and a line of calls that wait for one. Three classes know who holds a token and who is next:

* `_Count`: a set of tasks and a `trio.lowlevel.ParkingLot`, for a limit that is a number;
* `_Borrowed`: a `trio.CapacityLimiter` of the caller's;
* `_Adaptive`: a limiter, own or passed, behind a gate. Its numbers, which outlast a run if the limiter does, are in
  `_Size`.

In all three a token is handed over: the call that puts it back gives it to the first in the line. So no call that
comes in between can take it, nothing is woken in vain, and a token that is waited for is always in use.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary, proxy

import trio

from ._adapters import PerRun, check_not_async, close_if_coroutine, named_like, states_of
from ._arguments import NotAwaitable, check_awaitable, check_function, describe, name_of
from ._core.limits import check_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from trio.lowlevel import Task

P = ParamSpec("P")
R = TypeVar("R")

FIRST_SIZE: Final = 10
"""The tokens that an adaptive cap starts with, if its limit is not lower."""


def cap(
    fn: Callable[P, Awaitable[R]],
    limit: float | trio.CapacityLimiter,
    *,
    key: Callable[..., Hashable] | None = None,
    overloaded: Callable[[Exception], bool | float | None] | None = None,
) -> Callable[P, Awaitable[R]]:
    """Make an async function that calls `fn`, with no more than `limit` calls at work at once.

    The limit of `map` and of the other calls says how many items are in progress. Most of an item's time may not be
    work: it waits to try again, for its turn at a slow host, for a server that asked to be left alone. `cap` bounds
    just the calls, so that an item that waits keeps its place in the run but holds no token that another item could
    use. Hence two numbers: how far to look ahead, and how much to ask of the server.

    Adapters compose; from the outside in: retries, so that a wait between attempts holds no token; the cap for each
    key, so that what waits for a slow host holds no token of the total; the cap for the total; `throttle`, so that
    calls leave at its rate; the client::

        get = fanout.throttle(client.get, 50)  # at most 50 requests a second
        get = fanout.cap(get, 20)  # at most 20 at once, over all calls that use `get`
        get = fanout.cap(get, 2, key=host_of)  # and at most 2 of these to one host
        fetch = stamina.retry(on=httpx.HTTPError, attempts=5)(get)
        pages = await fanout.map(fetch, urls, limit=1_000)

    Calls get their tokens in the order in which they were made; with a `key`, in that order for each key. The bound
    holds over all calls of the function that this returns, from whatever task. Each Trio run counts for itself.

    **Overload**: with `overloaded`, the cap adapts to what a server takes. It starts at 10, or at `limit` if that is
    lower. Until the first sign of overload it doubles each time that as many calls as it allows have succeeded and one
    had to wait for a token; after that it grows by 1. It is never above `limit`. A sign of overload cuts it to 7/10 of
    the tokens in use. Then only calls that got their token after the cut count for another cut or for growth, so that
    fifty refusals of one burst are one cut. (Additive increase and multiplicative decrease are how TCP avoids
    congestion, RFC 5681.) If the server named a time, no call gets a token before it has passed, and the calls that
    waited then start within the cap, not all at once. The refused call fails all the same: to try again is up to the
    retries outside. If a server counts requests by the second or the minute, and you know the number, use `throttle`.

    **Cancellation**: a call that is cancelled while it waits uses up nothing. However a call ends, its token is put
    back. The wait is part of the call, so that an `item_timeout` includes it. A time limit for the work alone is
    `trio.fail_after` inside of `fn`.

    Args:
        fn: an async function.
        limit: how many calls may be at work at once: an int of 1 or more, `math.inf`, or, without a `key`, a
            `trio.CapacityLimiter` to share. With `overloaded` its `total_tokens` are lowered to 10 by the first call,
            and follow the cap: all who use the limiter are slowed down together. What you assign to `total_tokens` is
            the cap at once, and the most it grows to; 0 pauses the calls.
        key: a function that is not async. It is called with the arguments of each call, in its task, and returns
            something hashable, such as the host of a URL. Each key has a limit and a cap of its own, and costs memory
            only while a call holds or awaits its tokens, and while a server is to be left alone.
        overloaded: a function that is not async. It is called with each `Exception` that `fn` raises, and returns
            whether it is a sign of overload: False or None if not; True if there were too many calls at once; a number
            of seconds if the server is to be left alone for that long. Zero, a negative number and NaN count as True.

    Returns:
        An async function that takes the arguments of `fn`, and is named like it. It raises what `fn`, `key` or
        `overloaded` raises (the last with the exception of `fn` as its context), `TypeError` if what `key` or
        `overloaded` returns is not what it should be, and `RuntimeError` if the calling task, or a task above it,
        holds a token of the same limit (with a `key`: of the same key): the call could wait for itself.

    Raises:
        TypeError: at once, if an argument is of the wrong type, or `limit` is a limiter and there is a `key`.
        ValueError: at once, if `limit` is below 1.

    Example::

        def busy(exc):
            if isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code in (429, 503):
                seconds = exc.response.headers.get("Retry-After", "")
                return float(seconds) if seconds.isdigit() else True
            return False

        async def get(url):
            return (await client.get(url)).raise_for_status()

        ask = fanout.cap(get, 100, overloaded=busy)
        fetch = stamina.retry(on=httpx.HTTPError, attempts=10)(ask)
        pages = await fanout.map(fetch, urls, limit=1_000)
    """
    check_function(fn)
    check_limit(limit)
    if key is not None:
        check_not_async(key, "key")
    if overloaded is not None:
        check_not_async(overloaded, "overloaded")
    if isinstance(limit, trio.CapacityLimiter) and key is not None:
        msg = f"limit must be an int of 1 or more or math.inf where there is a key, got {describe(limit)}"
        raise TypeError(msg + ": each key has a limit of its own")
    states_in_run = states_of(key, functools.partial(_make_tokens, limit, adaptive=overloaded is not None))

    @named_like(fn)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        states = states_in_run.get()
        kept = states.enter(args, kwargs)
        try:
            tokens = kept.state
            task = trio.lowlevel.current_task()
            _check_none_held(tokens, task, fn)
            epoch = await tokens.acquire(task)
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

    return call


def _check_none_held(tokens: _Tokens, task: Task, fn: object) -> None:
    """Raise `RuntimeError` if `task`, or one above it, holds one of the tokens."""
    holder = task
    while not tokens.holds(holder):
        if holder.parent_nursery is None:
            return
        holder = holder.parent_nursery.parent_task
    msg = (
        f"{name_of(fn)} was called under its own cap: {holder!r} holds a token of the same limit, so that this call "
        "could wait for itself; cap only the inner or only the outer call, or give each a limit of its own"
    )
    raise RuntimeError(msg)


class _Tokens(Protocol):
    """What a call needs to know of its cap."""

    def holds(self, task: Task, /) -> bool:
        """Whether `task` holds a token."""
        ...

    async def acquire(self, task: Task) -> int:
        """Wait until the calling task has a token; give back the epoch."""
        ...

    def succeeded(self, epoch: int) -> None:
        """A call of that epoch, which holds its token still, has returned."""
        ...

    def failed(self, epoch: int, overloaded: object) -> None:
        """Such a call has raised an exception, of which the user's function gave this answer."""
        ...

    def release(self, task: Task) -> None:
        """Put back the token of `task`."""
        ...

    def expires(self) -> float:
        """The time from which it is no different from a new one, if no call uses it."""
        ...


def _make_tokens(limit: float | trio.CapacityLimiter, *, adaptive: bool) -> _Tokens:
    if isinstance(limit, trio.CapacityLimiter):
        return _adaptive_on(limit) if adaptive else _Borrowed(limit)
    return _Adaptive(_Size(trio.CapacityLimiter(limit))) if adaptive else _Count(limit)


class _Fixed:
    """What is no different for those that learn nothing from a call."""

    def succeeded(self, epoch: int) -> None: ...

    def failed(self, epoch: int, overloaded: object) -> None: ...

    def expires(self) -> float:
        return -math.inf


class _Count(_Fixed):
    """So many tokens, and who holds them. A call that waits for one costs half of what `trio.CapacityLimiter` costs."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._holders: set[Task] = set()
        self._line = trio.lowlevel.ParkingLot()  # if a call waits, there is no token left
        self.holds = self._holders.__contains__

    # Protected, here and below, or Ctrl-C could come between a token and the `try` that puts it back, or before that.
    @trio.lowlevel.enable_ki_protection
    async def acquire(self, task: Task) -> int:
        if len(self._holders) >= self._limit:
            await self._line.park()  # `release` has made it a holder
        else:
            await trio.lowlevel.checkpoint_if_cancelled()  # lets no other task in
            self._holders.add(task)
            await trio.lowlevel.cancel_shielded_checkpoint()
        return 0

    @trio.lowlevel.enable_ki_protection
    def release(self, task: Task) -> None:
        self._holders.remove(task)
        if self._line:
            self._holders.update(self._line.unpark())


class _Borrowed(_Fixed):
    """The tokens of a limiter of the caller's."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter

    def holds(self, task: Task, /) -> bool:
        return _is_borrower(self._limiter, task)

    @trio.lowlevel.enable_ki_protection
    async def acquire(self, task: Task) -> int:
        await self._limiter.acquire()
        return 0

    @trio.lowlevel.enable_ki_protection
    def release(self, task: Task) -> None:
        self._limiter.release_on_behalf_of(task)


@trio.lowlevel.enable_ki_protection
def _is_borrower(limiter: trio.CapacityLimiter, task: Task) -> bool:
    """Whether `task` holds a token of `limiter`.

    In constant time, where `limiter.statistics()` copies all borrowers. A token that is taken and put back without a
    checkpoint in between is missed by no other task: if there are tokens left, none waits.
    """
    try:
        limiter.acquire_on_behalf_of_nowait(task)
    except trio.WouldBlock:
        return False
    except RuntimeError:
        return True
    limiter.release_on_behalf_of(task)
    return False


class _Size:
    """How many tokens an adaptive cap has: the `total_tokens` of its limiter."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self.limiter = limiter
        self.epoch = 0  # how many signs of overload have counted
        self._ceiling = limiter.total_tokens
        self._set(min(FIRST_SIZE, self._ceiling))

    def _set(self, size: float) -> None:
        self._size = self.limiter.total_tokens = size
        self._successes = 0
        self.waited = False  # whether a call had to wait for a token since then; `_Adaptive` says so, too

    def follow(self) -> None:
        """Take over what the user has set as `total_tokens` by hand."""
        if self.limiter.total_tokens != self._size:
            self._ceiling = self.limiter.total_tokens
            self._set(self._ceiling)

    def succeeded(self) -> None:
        """Count a call of this epoch that has succeeded, and grow if it is time."""
        self._successes += 1
        if self.waited and self._successes >= self._size and self._size < self._ceiling:
            self._set(min(self._ceiling, self._size + (self._size if self.epoch == 0 else 1)))

    def cut(self) -> None:
        """Cut the size after a sign of overload, and begin a new epoch."""
        self.epoch += 1
        in_use = min(self._size, self.limiter.borrowed_tokens)
        self._set(min(self._size, max(1, 7 * in_use // 10)))  # not up from 0, which the user has set
        # These go on waiting. A call that is in `_Adaptive`'s line will say so itself, when it comes to the limiter.
        self.waited = self.limiter.statistics().tasks_waiting > 0


class _Adaptive:
    """A limiter behind a gate, and the line of calls for both.

    A few calls are *ahead* of the line: they wait at the gate and then, in the limiter's own line, for a token. While
    there is a line, there is at least one ahead, to see the gate open, and tokens that others put back or the user
    adds. All others are parked in the line. They get tokens on their behalf, as many as there are, by calls that put
    theirs back, and by those ahead as they leave. So a gate that moves wakes only those ahead, however long the line.
    """

    def __init__(self, size: _Size) -> None:
        self._size = size
        self._limiter = size.limiter
        self._gate = -math.inf  # the time at which it opens
        self._line = trio.lowlevel.ParkingLot()
        self._ahead: set[Task] = set()
        self._borrowing = 0  # how many of those ahead are in the limiter's line, or have just got a token there
        # In the order of the line: calls that were given a token and have not run since; and calls that then found the
        # gate closed, and wait before the line once more.
        self._served: dict[Task, None] = {}
        self._front: dict[Task, trio.lowlevel.ParkingLot] = {}

    def _is_open(self) -> bool:
        return trio.current_time() >= self._gate

    def holds(self, task: Task, /) -> bool:
        return _is_borrower(self._limiter, task)

    def expires(self) -> float:
        return self._gate

    @trio.lowlevel.enable_ki_protection
    async def acquire(self, task: Task) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()  # lets no other task in
        if self._ahead or self._front:
            await self._line.park()  # `_hand_out` has served it, or sent it ahead
        elif self._is_open() and self._limiter.available_tokens > 0:
            self._serve(task)
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            self._ahead.add(task)
        while task not in self._ahead:
            if task in self._served and self._is_open():
                del self._served[task]
                return self._size.epoch
            await self._go_back(task)
        try:
            await self._borrow(task)
        finally:
            self._ahead.remove(task)
            self._hand_out()
        return self._size.epoch

    async def _go_back(self, task: Task) -> None:
        """Wait once more, as the gate was closed after the token came, and before this task could run."""
        # The first to run does this for all that were served, so that they keep their order: Trio runs them in any.
        for served in self._served:
            self._limiter.release_on_behalf_of(served)
        self._front = {served: trio.lowlevel.ParkingLot() for served in self._served} | self._front
        self._served.clear()
        if not self._ahead and next(iter(self._front)) is task:
            del self._front[task]
            self._ahead.add(task)
            return
        try:
            await self._front[task].park()  # as in the line
        except BaseException:
            # Between the cancellation and now, it may have been served or sent ahead: then the next is.
            self._front.pop(task, None)
            self._ahead.discard(task)
            if task in self._served:
                del self._served[task]
                self._limiter.release_on_behalf_of(task)
            self._hand_out()
            raise

    async def _borrow(self, task: Task) -> None:
        """Wait for the gate, and then for a token."""
        while True:
            if not self._is_open():
                await trio.sleep_until(self._gate)
                continue  # it may have been moved meanwhile
            if self._limiter.available_tokens <= 0:
                self._size.waited = True
            self._borrowing += 1
            try:
                await self._limiter.acquire()
            finally:
                self._borrowing -= 1
            if self._is_open():
                return
            self._limiter.release_on_behalf_of(task)

    def _hand_out(self) -> None:
        """Serve those in the line while there are tokens, and see to it that one is ahead."""
        # Those ahead that are on their way from the gate, or from the line, to the limiter come first.
        if len(self._ahead) == self._borrowing and self._is_open():
            while self._is_line() and self._limiter.available_tokens > 0:
                self._serve(self._call_first())
        if self._is_line() and not self._ahead:
            self._ahead.add(self._call_first())

    def _is_line(self) -> bool:
        return bool(self._front or self._line)

    def _call_first(self) -> Task:
        """Wake the first that waits; one in front may be awake still, or again."""
        if self._front:
            task = next(iter(self._front))
            self._front.pop(task).unpark()
        else:
            (task,) = self._line.unpark()
        return task

    def _serve(self, task: Task) -> None:
        self._limiter.acquire_on_behalf_of_nowait(task)
        self._served[task] = None

    @trio.lowlevel.enable_ki_protection
    def release(self, task: Task) -> None:
        self._limiter.release_on_behalf_of(task)
        self._hand_out()

    @trio.lowlevel.enable_ki_protection
    def succeeded(self, epoch: int) -> None:
        self._size.follow()
        if epoch == self._size.epoch:
            self._size.succeeded()

    @trio.lowlevel.enable_ki_protection
    def failed(self, epoch: int, overloaded: object) -> None:
        pause = _pause_of(overloaded)
        if pause is None:
            return
        self._size.follow()
        self._hand_out()  # tokens that the user has just added: for the cut, they are in use
        self._gate = max(self._gate, trio.current_time() + pause)
        if epoch == self._size.epoch:
            self._size.cut()


def _pause_of(overloaded: object) -> float | None:
    """The seconds for which to leave a server alone, or None if it is not overloaded."""
    if overloaded is None or overloaded is False:
        return None
    if isinstance(overloaded, (int, float)):
        # True is no number of seconds, and NaN fails the comparison.
        return min(overloaded, sys.float_info.max) if overloaded is not True and overloaded > 0 else 0.0
    close_if_coroutine(overloaded)
    msg = f"overloaded must return a bool, a number of seconds or None, got {describe(overloaded)} from it"
    raise TypeError(msg)


# Kept as long as the limiter, and hence without a reference to it.
_sizes: Final[WeakKeyDictionary[trio.CapacityLimiter, _Size]] = WeakKeyDictionary()
_adaptive: Final = PerRun(WeakKeyDictionary[trio.CapacityLimiter, _Adaptive])


def _adaptive_on(limiter: trio.CapacityLimiter) -> _Adaptive:
    """What all adaptive caps on one limiter share: its size in all runs, and its gate in one."""
    in_run = _adaptive.get()
    adaptive = in_run.get(limiter)
    if adaptive is None:
        size = _sizes.get(limiter)
        if size is None:
            size = _sizes[limiter] = _Size(proxy(limiter))
        adaptive = in_run[limiter] = _Adaptive(size)
    return adaptive
