"""A run of functions that never wait lets other tasks in, and notices its cancellation.

Items here take real time by a busy loop. What is counted is turns of the event loop and items, never seconds: an item
takes its milliseconds at least, so that these bounds hold on a slow machine too.
"""

import contextlib

import pytest
import trio

import trio_fanout as fanout
from helpers import busy, double, limit_of


class Ticker:
    """A task that takes every turn it gets, and counts how many items were run since the last one."""

    def __init__(self):
        self.turns = 0
        self.items = 0
        self.most = 0

    async def run(self):
        while True:
            self.turns += 1
            self.most = max(self.most, self.items)
            self.items = 0
            await trio.lowlevel.checkpoint()


LIMITS = pytest.mark.parametrize("limit", [1, 40, "shared 40"])


@LIMITS
@pytest.mark.parametrize(
    ("milliseconds", "count", "most"),
    [
        (1, 80, 22),  # at most 10 ms and an item in one turn, and the ticker may be early in one and late in the next
        (10, 16, 4),
    ],
)
async def test_items_that_never_wait_let_other_tasks_in(milliseconds, count, most, limit, make):
    """Forty workers with 10 ms each are not 400 ms in one go, freshly started ones included."""
    ticker = Ticker()

    async def fn(x):
        ticker.items += 1
        busy(milliseconds / 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.lowlevel.checkpoint()
        await fanout.do(fn, make(range(count)), limit=limit_of(limit))
        nursery.cancel_scope.cancel()
    assert ticker.turns >= 4
    assert ticker.most <= most


async def test_failures_let_other_tasks_in_as_well(shared):
    ticker = Ticker()

    async def fn(x):
        ticker.items += 1
        busy(0.002)
        raise ValueError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.lowlevel.checkpoint()
        await fanout.map(fn, range(40), limit=limit_of(40, shared), policy=fanout.Settle())
        nursery.cancel_scope.cancel()
    assert ticker.most <= 12


async def test_a_slow_source_lets_other_tasks_in():
    """The time that a plain iterator takes is the run's as well."""
    ticker = Ticker()

    def source():
        for x in range(30):
            ticker.items += 1
            busy(0.002)
            yield x

    async def fn(x):
        pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.lowlevel.checkpoint()
        await fanout.do(fn, source())
        nursery.cancel_scope.cancel()
    assert ticker.most <= 12


@LIMITS
@pytest.mark.parametrize("by", ["item", "another task"])
async def test_items_that_never_wait_notice_a_cancellation(by, limit, make):
    after = 0

    async def canceller():
        while count < 20:
            await trio.lowlevel.checkpoint()
        scope.cancel()

    count = 0

    async def fn(x):
        nonlocal after, count
        after += scope.cancel_called
        count += 1
        busy(0.001)
        if by == "item" and count == 20:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            if by == "another task":
                nursery.start_soon(canceller)
            await fanout.do(fn, make(range(10_000)), limit=limit_of(limit))
    assert scope.cancelled_caught
    assert after <= 22


@LIMITS
@pytest.mark.parametrize("end", ["failure", "interrupt", "success", "time"])
async def test_items_that_never_wait_are_ended_by_the_run(end, limit):
    """By its own decision: nothing more is started at all."""
    began = []

    async def fn(x):
        began.append(x)
        busy(0.001)
        if x == 9 and end == "failure":
            raise ValueError
        if x == 9 and end == "interrupt":
            raise KeyboardInterrupt
        if x < 9 and end == "success":
            raise ValueError
        return x

    policy = {"success": fanout.FirstSuccess(), "time": fanout.Settle(move_on_after=0.02)}.get(end, fanout.FailFast())
    try:
        await fanout.map(fn, iter(range(10_000)), limit=limit_of(limit), policy=policy)
    except (ValueError, KeyboardInterrupt):
        pass
    if end == "time":
        assert len(began) <= 42
    else:
        assert began == list(range(10))


async def test_a_shared_limiter_is_handed_on_by_items_that_never_wait():
    limiter = trio.CapacityLimiter(1)
    turns = 0

    async def fn(x):
        busy(0.0005)

    async def another():
        nonlocal turns
        while True:
            async with limiter:
                turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        await fanout.do(fn, range(100), limit=limiter)
        nursery.cancel_scope.cancel()
    assert turns >= 3


async def test_an_async_source_that_never_waits_gives_many_items_in_one_turn():
    """The loop has its turn when it is time, and not after each item: that would be two turns for each."""
    ticker = Ticker()

    async def source():
        for x in range(1000):
            yield x

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.lowlevel.checkpoint()
        async with (
            contextlib.aclosing(source()) as items,
            fanout.stream(double, items, limit=2000, buffer=2000) as results,
        ):
            assert [result.value async for result in results] == [2 * x for x in range(1000)]
        nursery.cancel_scope.cancel()
    assert ticker.turns <= 500


async def test_an_async_source_that_never_waits_lets_other_tasks_in():
    """Also where there is room for all of its items."""
    ticker = Ticker()
    last_has_come = trio.Event()

    async def fn(x):
        if x == 59:
            last_has_come.set()
        await last_has_come.wait()

    async def source():
        for x in range(60):
            ticker.items += 1
            busy(0.002)
            yield x

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.lowlevel.checkpoint()
        async with contextlib.aclosing(source()) as items:
            await fanout.do(fn, items, limit=1000)
        nursery.cancel_scope.cancel()
    assert ticker.most <= 25
