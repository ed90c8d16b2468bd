"""A group that winds down: `Group.stop`."""

import gc
import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import GROUP_POLICIES, Thing, limit_of, nothing_left


@GROUP_POLICIES
@pytest.mark.parametrize("limit", [2, "shared 2"])
async def test_jobs_that_run_finish_and_no_other_starts(policy, limit, autojump_clock):
    done = []

    async def job(n):
        await trio.sleep(1)
        done.append(n)
        return n

    with nothing_left():
        async with fanout.open_group(limit=limit_of(limit), policy=policy) as group:
            handles = [group.start_soon(job, n) for n in range(5)]
            await trio.sleep(0.5)
            group.stop()
            assert group.statistics() == fanout.GroupStatistics(queued=0, running=2, stopped=True)
            assert repr(group) == "<trio_fanout.Group, stopped: 0 queued, 2 running>"
            await trio.sleep(0.1)  # the block is not cancelled
    assert sorted(done) == [0, 1]
    assert [handle.outcome and handle.value for handle in handles] == [0, 1, None, None, None]
    assert trio.current_time() == 1
    assert group.statistics() == fanout.GroupStatistics(queued=0, running=0, stopped=True)
    assert "ended" in repr(group)


async def test_handles_of_jobs_that_never_start_end_immediately_as_cancelled(autojump_clock):
    """Those that wait for a token of a limiter of others, those in the queue, and those that come later."""
    limiter = trio.CapacityLimiter(1)
    woken = []

    async def wait_for(handle):
        await handle.wait()
        woken.append(handle.index)

    await limiter.acquire_on_behalf_of("an outsider")
    async with trio.open_nursery() as nursery, fanout.open_group(limit=limiter) as group:
        handles = [group.start_soon(trio.sleep, 1) for _ in range(3)]
        for handle in handles:
            nursery.start_soon(wait_for, handle)
        await wait_all_tasks_blocked()
        group.stop()
        handles.append(group.start_soon(trio.sleep, 1))
        for handle in handles:
            with pytest.raises(RuntimeError, match="it was cancelled"):
                _ = handle.value
        await wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2]
        assert group.statistics() == fanout.GroupStatistics(queued=0, running=0, stopped=True)
    assert limiter.borrowed_tokens == 1
    assert trio.current_time() == 0


async def test_arguments_of_jobs_that_never_start_are_let_go(autojump_clock):
    things = [Thing() for _ in range(3)]
    watching = [weakref.ref(thing) for thing in things]
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("an outsider")
    async with fanout.open_group(limit=limiter) as group:
        handles = [group.start_soon(trio.sleep, things.pop()) for _ in range(2)]
        await wait_all_tasks_blocked()
        group.stop()
        handles.append(group.start_soon(trio.sleep, things.pop()))
        gc.collect()
        assert [ref() for ref in watching] == [None] * 3
    assert len(handles) == 3


async def test_jobs_that_run_may_still_submit_jobs_which_never_start(autojump_clock):
    late = []

    async def job():
        await trio.sleep(1)
        late.append(group.start_soon(trio.sleep, 1))

    async with fanout.open_group() as group:
        group.start_soon(job)
        await wait_all_tasks_blocked()
        group.stop()
    assert trio.current_time() == 1
    assert "cancelled" in repr(late[0])


async def test_stop_from_a_job_ends_the_group_when_the_job_has_ended(autojump_clock):
    async def job():
        group.stop()
        await trio.sleep(1)
        return "done"

    async with fanout.open_group(limit=1) as group:
        first, second = group.start_soon(job), group.start_soon(job)
    assert first.value == "done"
    assert second.outcome is None


async def test_idle_workers_go_when_a_group_is_stopped(autojump_clock):
    """Otherwise the block would wait for them forever."""
    async with fanout.open_group(limit=4) as group:
        for _ in range(4):
            group.start_soon(trio.sleep, 1)
        await trio.sleep(2)
        group.stop()
        group.stop()
    assert trio.current_time() == 2


async def test_stop_after_the_end_does_nothing():
    async with fanout.open_group() as group:
        group.start_soon(trio.lowlevel.checkpoint)
    group.stop()
    assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)


async def test_stop_from_another_thread_is_refused():
    async with fanout.open_group() as group:
        with pytest.raises(RuntimeError, match=r"stop\(\) must be called from a task"):
            await trio.to_thread.run_sync(group.stop)
        assert not group.statistics().stopped


async def test_a_failure_after_stop_is_the_business_of_the_policy(autojump_clock):
    async def fail():
        await trio.sleep(1)
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        async with fanout.open_group() as group:
            group.start_soon(fail)
            await wait_all_tasks_blocked()
            group.stop()
            await trio.sleep_forever()  # which the failure cancels


async def test_total_counts_only_the_jobs_that_were_started(autojump_clock):
    async def fail():
        await trio.sleep(1)
        raise ValueError("late")

    with pytest.raises(fanout.FanOutError, match="1 of 2 items failed") as raised:
        async with fanout.open_group(limit=2, policy=fanout.Collect()) as group:
            group.start_soon(fail)
            group.start_soon(trio.sleep, 1)
            for _ in range(5):
                group.start_soon(trio.sleep, 1)
            await wait_all_tasks_blocked()
            group.stop()
    assert raised.value.total == 2


async def test_a_job_that_is_stopped_while_it_waits_and_cancelled_in_the_same_turn_ends_once(autojump_clock):
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("an outsider")
    async with fanout.open_group(limit=limiter) as group:
        handle = group.start_soon(trio.sleep, 1)
        await wait_all_tasks_blocked()
        group.stop()
        group.cancel_scope.cancel()
    assert handle.outcome is None
    assert group.statistics() == fanout.GroupStatistics(queued=0, running=0, stopped=True)
