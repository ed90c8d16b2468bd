"""A limiter without tokens: a run waits, and takes no more than it has to."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import CountingSource, double


async def test_one_item_is_taken_where_there_are_no_tokens(autojump_clock):
    """It waits for one beside all others who want one; a second could not start before it."""
    limiter = trio.CapacityLimiter(0)
    source = CountingSource(range(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: fanout.do(double, source, limit=limiter))
        await wait_all_tasks_blocked()
        assert source.taken == 1
        limiter.total_tokens = 1
    assert source.taken == 5


async def test_a_deadlock_is_told_with_the_name_of_the_argument(autojump_clock):
    limiter = trio.CapacityLimiter(1)
    async with limiter:
        with pytest.raises(RuntimeError, match=r"^limit=.*; give this call a limit of its own"):
            await fanout.map(double, [1], limit=limiter)


async def test_what_waits_for_a_token_was_not_started(autojump_clock):
    """So it does not count in the total."""
    limiter = trio.CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("somebody else")

    async def fail(item):
        await trio.sleep(1)
        raise ValueError

    with pytest.raises(fanout.FanOutError) as info:
        await fanout.map(fail, range(4), limit=limiter, policy=fanout.Collect(max_failures=1))
    assert (info.value.total, info.value.indices) == (1, (0,))
