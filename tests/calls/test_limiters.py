"""Every run is driven by a limiter, its own or a shared one; streams and groups show theirs."""

import gc
import math
import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import Gauge, Steps, aiter_of, limit_of, nothing_left, workers


def limiters(total):
    return [thing for thing in gc.get_objects() if type(thing) is trio.CapacityLimiter and thing.total_tokens == total]


async def test_a_limit_is_a_limiter_whose_tokens_the_workers_borrow(make, autojump_clock):
    seen = []
    found = []  # weak: a list that holds it would keep it alive

    async def fn(n):
        await wait_all_tasks_blocked()
        if not found:
            found.extend(map(weakref.ref, limiters(17)))  # looks at all objects
        (limiter,) = (ref() for ref in found)
        seen.append((trio.lowlevel.current_task() in limiter.statistics().borrowers, limiter.borrowed_tokens))

    await fanout.map(fn, make(range(50)), limit=17)
    assert all(borrows for borrows, _ in seen)
    assert max(number for _, number in seen) == 17
    gc.collect()
    assert limiters(17) == []


async def test_a_worker_keeps_its_token_from_item_to_item(autojump_clock):
    async with fanout.open_group(limit=3) as group:
        for n in range(10):
            group.start_soon(trio.sleep, n)
        for _ in range(10):
            await trio.sleep(1)
            assert group.limiter.borrowed_tokens == 3
    assert group.limiter.borrowed_tokens == 0


@pytest.mark.parametrize("limit", [5, math.inf])
async def test_a_stream_and_a_group_show_their_own_limiter(limit):
    async with fanout.stream(trio.sleep, [], limit=limit) as results:
        assert isinstance(results.limiter, trio.CapacityLimiter)
        assert results.limiter.total_tokens == limit
    async with fanout.open_group(limit=limit) as group:
        assert isinstance(group.limiter, trio.CapacityLimiter)
        assert group.limiter.total_tokens == limit


async def test_and_a_shared_one():
    limiter = trio.CapacityLimiter(2)
    async with fanout.stream(trio.sleep, [], limit=limiter) as results, fanout.open_group(limit=limiter) as group:
        assert results.limiter is limiter
        assert group.limiter is limiter


class Work:
    """Items of a second each, and how many run."""

    def __init__(self):
        self.gauge = Gauge()

    async def __call__(self, n):
        with self.gauge.running(n):
            await trio.sleep(1)
        return n


async def test_a_group_is_turned_down_and_up_and_paused_while_it_goes_on(shared, autojump_clock):
    work = Work()
    limit = limit_of(8, shared)
    async with fanout.open_group(limit=limit) as group:
        for n in range(100):
            group.start_soon(work, n)
        now = []
        for total in (8, 2, 2, 5, 1, 0, 0, 3, 0, 6, 8):
            group.limiter.total_tokens = total
            await trio.sleep(1.37)  # each item that runs has finished by then
            now.append(work.gauge.now)
    assert work.gauge.began == list(range(100))
    assert now == [8, 2, 2, 5, 1, 0, 0, 3, 0, 6, 8]


async def test_so_is_a_stream(make, shared, autojump_clock):
    work = Work()
    limit = limit_of(8, shared)
    async with fanout.stream(work, make(range(60)), limit=limit, buffer=math.inf) as results:
        now = []
        for total in (8, 2, 0, 0, 3, 8):
            results.limiter.total_tokens = total
            await trio.sleep(1.37)
            now.append(work.gauge.now)
        assert [index async for index, _, _ in results] == list(range(60))
    assert now == [8, 2, 0, 0, 3, 8]


async def test_after_a_pause_one_token_lets_one_item_run(autojump_clock):
    work = Work()
    async with fanout.open_group(limit=5) as group:
        for n in range(5):
            group.start_soon(work, n)
        await trio.sleep(2)
        assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)
        assert group.limiter.borrowed_tokens == 0
        group.limiter.total_tokens = 0
        handles = [group.start_soon(work, n) for n in range(3)]
        await trio.sleep(5)
        assert work.gauge.now == 0
        assert group.statistics() == fanout.GroupStatistics(queued=3, running=0)
        group.limiter.total_tokens = 1
        await trio.sleep(0.5)
        assert work.gauge.now == 1
        assert group.statistics() == fanout.GroupStatistics(queued=2, running=1)
        group.limiter.total_tokens = 5
        for handle in handles:
            await handle.wait()
        assert trio.current_time() == 9


async def test_a_paused_group_ends_when_it_is_cancelled(autojump_clock):
    with nothing_left():
        async with fanout.open_group(limit=2) as group:
            group.limiter.total_tokens = 0
            handle = group.start_soon(trio.sleep, 1)
            await trio.sleep(1)
            group.cancel_scope.cancel()
    assert handle.outcome is None
    assert group.limiter.borrowed_tokens == 0
    assert group.limiter.statistics().tasks_waiting == 0


async def test_a_paused_stream_can_be_stopped(autojump_clock):
    work = Work()
    async with fanout.stream(work, range(10), limit=2) as results:
        results.limiter.total_tokens = 0
        await trio.sleep(1)
        results.stop()
        assert [index async for index, _, _ in results] == []


async def test_a_thousand_workers_are_there_within_a_few_turns(autojump_clock):
    """Where the length is known, and in a group. Ten on a fast machine; one worker a turn would take a thousand."""

    async def turns_until(count, prefix):
        turns = 0
        while workers(prefix) < count:
            await trio.lowlevel.checkpoint()
            turns += 1
        return turns

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: fanout.map(trio.sleep, [math.inf] * 1000, limit=1000))
        await trio.lowlevel.checkpoint()
        assert await turns_until(1000, "map(") <= 60
        nursery.cancel_scope.cancel()
    async with fanout.open_group(limit=1000) as group:
        for _ in range(1000):
            group.start_soon(trio.sleep, math.inf)
        assert await turns_until(1000, "open_group(") <= 60
        group.cancel_scope.cancel()


@pytest.mark.parametrize("idle", [False, True], ids=["", "idle workers"])
async def test_jobs_with_contexts_of_their_own_take_as_many_steps_at_any_limit(idle, autojump_clock):
    import contextvars  # noqa: PLC0415

    var = contextvars.ContextVar("var")

    async def job(n):
        assert var.get() == n
        began.append(n)
        await trio.lowlevel.checkpoint()

    steps = {}
    for limit in (10, 500):
        began = []
        instrument = Steps()
        async with fanout.open_group(limit=limit) as group:
            for _ in range(limit * idle):
                group.start_soon(trio.lowlevel.checkpoint)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(instrument)
            for n in range(1000):
                var.set(n)
                group.start_soon(job, n)
                if n % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(instrument)
        steps[limit] = instrument.count / 1000
        assert began == list(range(1000))
    assert max(steps.values()) < 12


async def test_a_limit_raised_from_nothing_has_an_async_source_read_while_the_first_item_runs(autojump_clock):
    """It may take long, or wait for one that comes later."""
    later = trio.Event()

    async def work(n):
        if n == 0:
            await later.wait()
        later.set()
        return n

    async with fanout.stream(work, aiter_of(range(5)), limit=3) as results:
        results.limiter.total_tokens = 0
        await wait_all_tasks_blocked()
        results.limiter.total_tokens = 3
        assert [value async for _, _, value in results] == list(range(5))


async def test_a_token_of_its_own_limiter_that_the_user_holds_stops_no_item_behind_it(autojump_clock):
    work = Work()
    async with fanout.open_group(limit=2) as group, group.limiter:
        for n in range(6):
            group.start_soon(work, n)
        await trio.sleep(3.5)
        assert work.gauge.began == [0, 1, 2, 3]
        assert work.gauge.now == 1
    assert work.gauge.began == list(range(6))


async def test_a_token_of_its_own_limiter_that_the_user_holds_stops_not_even_the_last_item(autojump_clock):
    """No idle worker keeps a token that an item waits for."""
    async with fanout.open_group(limit=2) as group, group.limiter:
        group.start_soon(trio.sleep, 1)
        await group.start_soon(trio.sleep, 1).wait()
    assert trio.current_time() == 2


async def test_while_nothing_runs_all_tokens_of_its_own_limiter_are_free(autojump_clock):
    async with fanout.open_group(limit=1) as group, fanout.open_group(limit=group.limiter) as other:
        for _ in range(2):
            await group.start_soon(trio.sleep, 1).wait()
            await other.start_soon(trio.sleep, 1).wait()
            async with group.limiter:
                pass
    async with fanout.stream(trio.sleep, [1] * 3, limit=1, buffer=0) as results:
        await trio.sleep(5)  # the window is full
        await fanout.map(trio.sleep, [1], limit=results.limiter)
        assert [index async for index, _, _ in results] == [0, 1, 2]


@pytest.mark.parametrize("raised_between", [False, True])
async def test_the_tokens_that_the_user_holds_count_when_the_limit_is_lowered(raised_between, autojump_clock):
    async def first():
        await trio.sleep(1)
        group.start_soon(trio.sleep, 1)

    async with fanout.open_group(limit=1 if raised_between else 2) as group:
        group.start_soon(first)
        await trio.sleep(0.5)
        group.limiter.total_tokens = 2
        async with group.limiter:
            group.limiter.total_tokens = 1
            await trio.sleep(1)
            assert group.limiter.borrowed_tokens == 1
            assert group.statistics() == fanout.GroupStatistics(queued=1, running=0)


async def test_a_failure_inside_of_a_scope_that_the_item_left_open_is_no_consequence(autojump_clock):
    error = ValueError("first")

    async def work(n):
        if n:
            await trio.sleep(2)
            raise KeyError
        trio.CancelScope(deadline=trio.current_time() + 1).__enter__()
        try:
            await trio.sleep_forever()
        finally:
            raise error

    with pytest.raises(ValueError, match="first") as info:
        await fanout.map(work, range(2))
    assert info.value is error
