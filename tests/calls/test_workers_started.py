"""How many tasks a run starts: one for each item at work, used again and again, and none that would find nothing."""

import contextlib

import pytest
import trio

import trio_fanout as fanout
from helpers import aiter_of, double, limit_of

WORKERS = ("do(", "open_group")  # how their names begin


class Started(trio.abc.Instrument):
    """Counts the workers that are started, and how many there are at once."""

    def __init__(self):
        self.total = self.living = self.most = 0

    def task_spawned(self, task):
        if task.name.startswith(WORKERS):
            self.total += 1
            self.living += 1
            self.most = max(self.most, self.living)

    def task_exited(self, task):
        self.living -= task.name.startswith(WORKERS)


@contextlib.contextmanager
def started():
    instrument = Started()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)


OWNED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


@OWNED
@pytest.mark.parametrize(("count", "limit"), [(1, 4), (3, 4), (4, 4), (5, 4), (50, 4), (50, 1), (200, 100)])
async def test_as_many_as_there_are_items_or_tokens(count, limit, shared, autojump_clock):
    with started() as seen:
        await fanout.do(trio.sleep, [1] * count, limit=limit_of(limit, shared))
    assert seen.total == min(count, limit)


@OWNED
@pytest.mark.parametrize("make", [iter, aiter_of])
@pytest.mark.parametrize(("count", "limit"), [(1, 4), (3, 4), (4, 4), (50, 4), (50, 1), (200, 100)])
async def test_one_more_where_the_end_is_to_be_found(count, limit, make, shared, autojump_clock):
    with started() as seen:
        await fanout.do(trio.sleep, make([1] * count), limit=limit_of(limit, shared))
    assert seen.total in {min(count, limit), min(count + 1, limit)}


@OWNED
async def test_jobs_one_after_another_need_one(shared, autojump_clock):
    with started() as seen:
        async with fanout.open_group(limit=limit_of(4, shared)) as group:
            for n in range(5):
                await group.start_soon(double, n).wait()
                await trio.sleep(1)
    assert seen.total == 1


@OWNED
async def test_jobs_that_are_all_there_need_as_many_as_there_are_tokens(shared, autojump_clock):
    with started() as seen:
        async with fanout.open_group(limit=limit_of(4, shared)) as group:
            for _ in range(20):
                group.start_soon(trio.sleep, 1)
    assert seen.total == 4
    assert trio.current_time() == 5


@OWNED
async def test_after_a_pause_as_many_go_on(shared, autojump_clock):
    with started() as seen:
        async with fanout.open_group(limit=limit_of(3, shared)) as group:
            for burst in (1, 3, 2, 5):
                for _ in range(burst):
                    group.start_soon(trio.sleep, 1)
                await trio.sleep(10)
    assert seen.total == 3


async def test_a_raised_limit_starts_as_many_more(autojump_clock):
    limiter = trio.CapacityLimiter(2)
    with started() as seen:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: fanout.do(trio.sleep, [1] * 20, limit=limiter))
            await trio.sleep(1.5)
            assert (seen.total, limiter.borrowed_tokens) == (2, 2)
            limiter.total_tokens = 6
            await trio.sleep(1)
            assert (seen.total, limiter.borrowed_tokens) == (6, 6)
            limiter.total_tokens = 1
            await trio.sleep(1)
            assert (seen.living, limiter.borrowed_tokens) == (1, 1)
    assert seen.total == 6


@OWNED
async def test_jobs_that_come_while_all_are_at_work_wait(shared, autojump_clock):
    with started() as seen:
        async with fanout.open_group(limit=limit_of(2, shared)) as group:
            for _ in range(3):
                for _ in range(2):
                    group.start_soon(trio.sleep, 1)
                await trio.sleep(0.1)
    assert seen.most == seen.total == 2
