"""`stream`: how many items may be out, which makes a slow reader slow the workers down, and keeps memory flat."""

import math
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import FUNCTIONS, Gauge, Sized, Things, double, double_at_once, limit_of, nothing_left, workers


class Odd(Exception):
    pass


async def fail_odd(x):
    await trio.lowlevel.checkpoint()
    if x % 2:
        raise Odd
    return x


# How many are out


@FUNCTIONS
@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("buffer", [None, 0, 1, 7])
async def test_limit_and_buffer_bound_what_is_taken_and_not_handed_over(
    buffer, limit, fn, shared, source_class, ordered
):
    """And nothing less: while nothing is read, the window fills."""
    source = source_class(range(1000))
    window = limit + (limit if buffer is None else buffer)
    limiter = limit_of(limit, shared)
    with nothing_left():
        async with fanout.stream(fn, source, limit=limiter, ordered=ordered, buffer=buffer) as results:
            for handed_over in range(12):
                await wait_all_tasks_blocked()
                assert source.taken - handed_over == window
                await results.receive()
            for handed_over in range(12, 50):
                assert source.taken - handed_over <= window
                await results.receive()


async def test_an_endless_buffer_lets_all_items_run(source_class, ordered):
    source = source_class(range(1000))
    async with fanout.stream(double, source, limit=2, buffer=math.inf, ordered=ordered) as results:
        await wait_all_tasks_blocked()
        assert source.taken == 1000
        assert len([_ async for _ in results]) == 1000


async def test_an_endless_limit_lets_all_items_run(source_class):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep_forever()

    async with fanout.stream(fn, source_class(range(300)), limit=math.inf, buffer=0):
        await wait_all_tasks_blocked()
        assert gauge.now == 300


async def test_ordered_results_that_wait_for_an_earlier_one_fill_the_window(source_class):
    event = trio.Event()

    async def fn(x):
        if x == 0:
            await event.wait()
        return x

    source = source_class(range(100))
    async with fanout.stream(fn, source, limit=3, buffer=2) as results:
        await wait_all_tasks_blocked()
        assert source.taken == 5
        event.set()
        assert [index async for index, _, _ in results] == list(range(100))


@pytest.mark.parametrize("limit", [1, 3])
async def test_failed_items_under_collect_leave_the_window(limit, shared, ordered, source_class):
    """They are never handed over: it would fill forever."""
    source = source_class(range(100))
    limiter = limit_of(limit, shared)
    async with fanout.stream(
        fail_odd, source, limit=limiter, buffer=2, policy=fanout.Collect(), ordered=ordered
    ) as results:
        got = []
        with pytest.raises(fanout.FanOutError) as excinfo:
            while True:
                await wait_all_tasks_blocked()
                failed = sum(x % 2 for x in range(source.taken))
                assert source.taken - failed - len(got) <= limit + 2
                got.append((await results.receive()).index)
    assert sorted(got) == list(range(0, 100, 2))
    assert len(excinfo.value.indices) == 50


async def test_failed_items_leave_the_window_also_if_nothing_is_read(source_class):
    async def fn(x):
        await trio.lowlevel.checkpoint()
        raise Odd

    source = source_class(range(50))
    with pytest.raises(fanout.FanOutError):
        async with fanout.stream(fn, source, limit=2, buffer=0, policy=fanout.Collect()):
            await wait_all_tasks_blocked()
            assert source.taken == 50


async def test_failed_items_under_settle_are_results_and_fill_the_window(source_class):
    source = source_class(range(50))
    async with fanout.stream(fail_odd, source, limit=2, buffer=2, policy=fanout.Settle()) as results:
        for handed_over in range(10):
            await wait_all_tasks_blocked()
            assert source.taken - handed_over == 4
            await results.receive()


# To the end


@pytest.mark.parametrize("buffer", [0, 1, 2, 7])
async def test_a_slow_reader_reaches_the_end(buffer, ordered, shared, make, autojump_clock):
    """All workers may idle on a full window when the last item has been taken."""
    for count in range(8):
        limit = limit_of(2, shared)
        got = []
        with trio.fail_after(100), nothing_left():
            async with fanout.stream(
                double, make(range(count)), limit=limit, buffer=buffer, ordered=ordered
            ) as results:
                async for index, _, _ in results:
                    got.append(index)
                    await trio.sleep(1)
        assert sorted(got) == list(range(count))


@pytest.mark.parametrize("length", [0, 2, 5, 6, 99])
@pytest.mark.parametrize("buffer", [0, 1, 20])
async def test_a_wrong_length_loses_nothing_and_hangs_nothing(buffer, length, autojump_clock):
    got = []
    with trio.fail_after(100):
        async with fanout.stream(double, Sized(range(5), length), limit=2, buffer=buffer) as results:
            async for index, _, _ in results:
                got.append(index)
                await trio.sleep(1)
    assert got == list(range(5))


async def test_a_list_that_grows_is_taken_to_its_end(autojump_clock):
    items = [0, 1, 2]
    async with fanout.stream(double, items, limit=1, buffer=0) as results:
        async for index, _, _ in results:
            if index < 5:
                items.append(index)
            await trio.sleep(1)
    assert len(items) == 8


async def test_three_items_need_three_workers_however_slow_the_reader(autojump_clock):
    most = 0

    async def fn(x):
        nonlocal most
        await trio.sleep(1)
        most = max(most, workers("stream(fn)") - 1)  # the task that drives them has a name like theirs

    async with fanout.stream(fn, [1, 2, 3], limit=10) as results:
        async for _ in results:
            await trio.sleep(1)
    assert most == 3


# When


async def test_a_slow_reader_slows_the_workers_down(source_class, ordered, autojump_clock):
    """With room for two, an item is started as one is handed over."""
    started = []

    async def fn(x):
        started.append(trio.current_time())
        await trio.sleep(1)

    async with fanout.stream(fn, source_class(range(6)), limit=1, buffer=1, ordered=ordered) as results:
        async for _ in results:
            await trio.sleep(10)
    assert started == [0, 1, 2, 11, 21, 31]
    assert trio.current_time() == 61


async def test_workers_idle_no_longer_than_they_have_to(source_class, autojump_clock):
    async with fanout.stream(trio.sleep, source_class([2] * 9), limit=3, buffer=0) as results:
        times = [trio.current_time() async for _ in results]
    assert times == [2] * 3 + [4] * 3 + [6] * 3


async def test_a_reader_that_comes_back_to_many_results_sets_all_workers_off(source_class, autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(1)

    async with fanout.stream(fn, source_class(range(100)), limit=5, buffer=0) as results:
        await trio.sleep(3)
        for _ in range(5):
            await results.receive()
        await wait_all_tasks_blocked()
        assert gauge.now == 5


# Shared limiters


@pytest.mark.parametrize("buffer", [0, 3])
async def test_on_a_limiter_without_tokens_the_window_is_one_and_the_buffer(source_class, buffer, autojump_clock):
    limiter = trio.CapacityLimiter(0)
    gauge = Gauge()

    async def fn(x):
        gauge.began.append(x)

    source = source_class(range(100))
    with nothing_left(limiter):
        async with fanout.stream(fn, source, limit=limiter, buffer=buffer) as results:
            await wait_all_tasks_blocked()
            assert source.taken <= 1 + buffer
            assert gauge.began == []
            limiter.total_tokens = 2
            await wait_all_tasks_blocked()
            assert source.taken == 2 + buffer
            assert [(await results.receive()).index for _ in range(50)] == list(range(50))
            await wait_all_tasks_blocked()
            limiter.total_tokens = 0
            for _ in range(2 + buffer):  # what has been started already
                await results.receive()
            with trio.CancelScope() as scope:
                scope.deadline = trio.current_time() + 1
                await results.receive()
            assert scope.cancelled_caught
            assert len(gauge.began) == 52 + buffer
            assert source.taken <= len(gauge.began) + 1 + buffer
            results.stop()
            assert [_ async for _ in results] == []


async def test_the_window_follows_the_tokens(ordered, source_class, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    source = source_class(range(1000))
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(1)

    async with fanout.stream(fn, source, limit=limiter, ordered=ordered) as results:
        handed_over = 0
        for tokens in (2, 5, 1, 3, 2):
            limiter.total_tokens = tokens
            for _ in range(12):
                await results.receive()
                handed_over += 1
            gauge.peak = gauge.now
            await trio.sleep(30)
            assert source.taken - handed_over == 2 * tokens
            assert gauge.peak <= tokens


async def test_a_paused_stream_goes_on_and_ends(source_class, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    got = []

    async def pause():
        for tokens in (0, 2, 0, 1):
            await trio.sleep(2.5)
            limiter.total_tokens = tokens

    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            async with fanout.stream(trio.sleep, source_class([1] * 20), limit=limiter, buffer=1) as results:
                async for index, _, _ in results:
                    got.append(index)
    assert got == list(range(20))


async def test_a_stream_whose_items_are_done_ends_though_others_hold_the_tokens(make):
    limiter = trio.CapacityLimiter(1)
    async with fanout.stream(double, make(range(3)), limit=limiter, buffer=9) as results:
        await wait_all_tasks_blocked()
        limiter.acquire_on_behalf_of_nowait("other")
        assert len([_ async for _ in results]) == 3
    limiter.release_on_behalf_of("other")


async def test_results_wait_for_no_token():
    """Where the reader is slow, its results take no token from others."""
    limiter = trio.CapacityLimiter(2)
    async with fanout.stream(double, range(100), limit=limiter):
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        assert limiter.statistics().tasks_waiting == 0


async def test_two_streams_on_one_limiter_get_along(source_class, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    gauge = Gauge()
    got = {"a": [], "b": []}

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(1)

    async def read(name, pause):
        async with fanout.stream(fn, source_class(range(20)), limit=limiter, buffer=1) as results:
            async for index, _, _ in results:
                got[name].append(index)
                await trio.sleep(pause)

    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "a", 0.1)
            nursery.start_soon(read, "b", 3)
    assert got == {"a": list(range(20)), "b": list(range(20))}
    assert gauge.peak == 2


# Memory


async def test_items_and_values_live_no_longer_than_they_are_out(source_class, ordered):
    things = Things()

    async def fn(x):
        await trio.lowlevel.checkpoint()
        return things.make()

    source = source_class(things.make() for _ in range(2000))
    async with fanout.stream(fn, source, limit=3, buffer=4, ordered=ordered) as results:
        async for completed in results:
            del completed
            await trio.lowlevel.checkpoint()
        assert things.alive <= 2  # what the frames of this test hold
    assert things.alive <= 1  # enumerate() keeps what it gave last
    assert things.most <= 2 * (3 + 4 + 1) + 2


@pytest.mark.slow
async def test_an_endless_source_takes_no_more_memory_than_a_short_one(ordered):
    async with fanout.stream(double_at_once, iter(int, 1), limit=4, ordered=ordered) as results:
        async for index, _, _ in results:
            if index == 1000:
                before = sys.getallocatedblocks()
            if index == 100_000:
                break
    assert sys.getallocatedblocks() < before + 1000
