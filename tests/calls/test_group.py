"""`open_group`: jobs, handles, limits and context variables. Failures are in test_group_failures.py."""

import contextvars
import functools
import math
import traceback
from contextlib import suppress

import pytest
import trio
import trio.testing
from outcome import Error, Value
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    GROUP_POLICIES,
    LIMITS,
    Gauge,
    Thing,
    Things,
    busy,
    check_no_cycles,
    double,
    fail_when_cancelled,
    limit_of,
    no_cycles,
    nothing_left,
    task_names,
    workers,
)

var = contextvars.ContextVar("var")


def jobs_running():
    return workers("open_group")


# The life of a group


@GROUP_POLICIES
@LIMITS
async def test_the_block_ends_when_every_job_is_done(limit, policy, autojump_clock):
    with nothing_left():
        async with fanout.open_group(limit=limit_of(limit), policy=policy) as group:
            handles = [group.start_soon(double, x) for x in range(10)]
    assert [handle.value for handle in handles] == [2 * x for x in range(10)]
    assert [handle.index for handle in handles] == list(range(10))


@GROUP_POLICIES
async def test_a_group_without_jobs_ends(policy):
    with nothing_left():
        async with fanout.open_group(policy=policy) as group:
            assert isinstance(group, fanout.Group)


async def test_a_group_without_jobs_ends_though_there_are_no_tokens():
    async with fanout.open_group(limit=trio.CapacityLimiter(0)):
        pass


async def test_jobs_start_while_the_block_goes_on():
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep_forever()

    async with fanout.open_group(limit=3) as group:
        for _ in range(5):
            group.start_soon(job)
        await wait_all_tasks_blocked()
        assert gauge.now == 3
        group.cancel_scope.cancel()


async def test_a_worker_that_idles_takes_the_next_job():
    async with fanout.open_group(limit=3) as group:
        for x in range(4):
            handle = group.start_soon(double, x)
            await wait_all_tasks_blocked()
            assert handle.outcome == Value(2 * x)
            assert jobs_running() == 1


@LIMITS
async def test_jobs_start_in_the_order_of_submission(limit, autojump_clock):
    gauge = Gauge()

    async def job(x):
        with gauge.running(x):
            await trio.sleep(1 + x % 3)

    async with fanout.open_group(limit=limit_of(limit)) as group:
        for x in range(20):
            group.start_soon(job, x)
    assert gauge.began == list(range(20))


@LIMITS
async def test_jobs_that_queue_jobs_finish_at_any_limit(limit, autojump_clock):
    visited = []

    async def job(group, x):
        for child in (2 * x, 2 * x + 1):
            if child < 64:
                group.start_soon(job, group, child)
        await trio.sleep(x % 4)
        visited.append(x)
        return x

    with nothing_left():
        async with fanout.open_group(limit=limit_of(limit)) as group:
            group.start_soon(job, group, 1)
    assert sorted(visited) == list(range(1, 64))


@LIMITS
async def test_a_job_may_queue_a_job_as_its_last_act(limit):
    """Each worker is about to find the queue empty, and to leave, when the next job comes."""
    visited = []

    async def job(group, x):
        await trio.lowlevel.checkpoint()
        visited.append(x)
        if x < 50:
            group.start_soon(job, group, x + 1)

    async with fanout.open_group(limit=limit_of(limit)) as group:
        group.start_soon(job, group, 0)
    assert visited == list(range(51))


async def test_jobs_found_late_get_all_workers_again(autojump_clock):
    """The workers that left for want of jobs, when the block had ended, come back."""
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep(1)

    async def finder(group):
        await trio.sleep(10)
        for _ in range(6):
            group.start_soon(job)

    async with fanout.open_group(limit=4) as group:
        for _ in range(4):
            group.start_soon(job)
        group.start_soon(finder, group)
    assert gauge.peak == 4
    assert trio.current_time() == 13


async def test_a_task_beside_the_group_may_submit_while_jobs_run(autojump_clock):
    handles = []

    async def beside(group):
        await trio.sleep(1)
        handles.append(group.start_soon(double, 4))

    async with trio.open_nursery() as nursery, fanout.open_group() as group:
        group.start_soon(trio.sleep, 2)
        nursery.start_soon(beside, group)
    assert handles[0].value == 8


@pytest.mark.slow
async def test_a_hundred_thousand_jobs_need_a_task_for_each_that_runs():
    found = 0
    peak = 0

    async def crawl(group, page):
        nonlocal found, peak
        found += 1
        if page < 10_000:
            for link in range(9):
                group.start_soon(crawl, group, 10_000 + 9 * page + link)
        if page % 1000 == 0:
            await trio.lowlevel.checkpoint()
            peak = max(peak, trio.lowlevel.current_statistics().tasks_living)

    before = trio.lowlevel.current_statistics().tasks_living
    async with fanout.open_group(limit=5) as group:
        for page in range(10_000):
            group.start_soon(crawl, group, page)
    assert found == 100_000
    assert 0 < peak - before <= 5


async def test_few_jobs_start_few_workers(autojump_clock):
    async with fanout.open_group(limit=10_000) as group:
        for _ in range(3):
            group.start_soon(trio.sleep, 1)
        await wait_all_tasks_blocked()
        assert jobs_running() == 3


async def test_a_thousand_jobs_that_wait_run_at_once_without_a_limit(autojump_clock):
    async with fanout.open_group(limit=math.inf) as group:
        for _ in range(1000):
            group.start_soon(trio.sleep, 1)
    assert trio.current_time() == 1


async def test_jobs_that_never_wait_let_other_tasks_in():
    """A job that queues its successor forever is an endless run of functions that never wait."""

    async def job(group):
        busy(0.0005)
        group.start_soon(job, group)

    with trio.move_on_after(0.05) as scope:
        async with fanout.open_group(limit=2) as group:
            group.start_soon(job, group)
    assert scope.cancelled_caught


async def test_functions_of_any_kind_are_jobs():
    class Client:
        async def get(self, x):
            return await double(x)

        async def __call__(self, x):
            return await double(x)

    event = trio.Event()

    async with fanout.open_group() as group:
        handles = [
            group.start_soon(Client().get, 1),
            group.start_soon(Client(), 2),
            group.start_soon(functools.partial(double, x=3)),
            group.start_soon(lambda: double(4)),
            group.start_soon(fanout.in_thread(abs), -10),
        ]
        group.start_soon(event.wait)
        event.set()
    assert [handle.value for handle in handles] == [2, 4, 6, 8, 10]


async def test_worker_tasks_carry_the_name_of_their_job():
    async def fetch(page):
        await trio.sleep_forever()

    async def parse():
        await trio.sleep_forever()

    async with fanout.open_group() as group:
        group.start_soon(fetch, 1)
        group.start_soon(functools.partial(parse))
        await wait_all_tasks_blocked()
        names = task_names()
        group.cancel_scope.cancel()
    assert "open_group(fetch)" in names
    assert "open_group(parse)" in names


async def test_the_frames_of_a_job_are_visible():
    tasks = []

    async def deep():
        tasks.append(trio.lowlevel.current_task())
        await trio.sleep_forever()

    async def job():
        await deep()

    async with fanout.open_group() as group:
        group.start_soon(job)
        await wait_all_tasks_blocked()
        frames = [frame.f_code.co_name for frame, _ in tasks[0].iter_await_frames()]
        group.cancel_scope.cancel()
    assert "job" in frames
    assert "deep" in frames


async def test_groups_inside_groups_at_a_limit_of_one_each(autojump_clock):
    async def job(depth):
        await trio.sleep(1)
        if depth == 0:
            return 1
        async with fanout.open_group(limit=1) as group:
            handles = [group.start_soon(job, depth - 1) for _ in range(2)]
        return sum(handle.value for handle in handles)

    assert await job(4) == 16
    assert trio.current_time() == 31


async def test_a_job_of_an_inner_group_may_submit_to_the_outer_one(autojump_clock):
    handles = []

    async def inner_job(outer):
        handles.append(outer.start_soon(double, 3))

    async def outer_job(outer):
        async with fanout.open_group(limit=1) as inner:
            inner.start_soon(inner_job, outer)

    async with fanout.open_group(limit=1) as group:
        group.start_soon(outer_job, group)
    assert handles[0].value == 6


@LIMITS
async def test_a_group_inside_a_map_item(limit, autojump_clock):
    async def item(x):
        async with fanout.open_group(limit=2) as group:
            handles = [group.start_soon(double, x) for _ in range(3)]
        return sum(handle.value for handle in handles)

    assert await fanout.map(item, range(5), limit=limit_of(limit)) == [6 * x for x in range(5)]


# Handles


async def test_a_handle_before_while_and_after_its_job_runs(autojump_clock):
    async with fanout.open_group(limit=1) as group:
        group.start_soon(trio.sleep, 1)
        handle = group.start_soon(double, 4)
        assert isinstance(handle, fanout.Handle)
        assert (handle.index, handle.outcome) == (1, None)
        with pytest.raises(RuntimeError, match=r"job 1 .*not finished"):
            _ = handle.value
        await handle.wait()
        assert trio.current_time() == 1
        assert handle.outcome == Value(8)
        assert handle.value == 8
    assert handle.outcome == Value(8)
    assert handle.value == 8
    assert handle.value == 8


async def test_a_value_that_is_none_is_a_value():
    async with fanout.open_group() as group:
        handle = group.start_soon(trio.lowlevel.checkpoint)
    assert handle.outcome == Value(None)
    assert handle.value is None


async def test_a_handle_of_a_failed_job_raises_the_failure_each_time_it_is_asked():
    error = ValueError("no")

    async def job():
        await trio.lowlevel.checkpoint()
        raise error

    async with fanout.open_group(policy=fanout.Settle()) as group:
        handle = group.start_soon(job)
        await handle.wait()
    assert isinstance(handle.outcome, Error)
    assert handle.outcome.error is error
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as info:
            _ = handle.value
        assert info.value is error
        assert error.__context__ is None


async def test_a_handle_of_a_cancelled_job_has_no_outcome_for_good(autojump_clock):
    async with fanout.open_group(limit=1) as group:
        handles = [group.start_soon(trio.sleep_forever) for _ in range(2)]
        await trio.sleep(1)
        group.cancel_scope.cancel()
    for handle in handles:
        assert handle.outcome is None
        with pytest.raises(RuntimeError, match="cancelled"):
            _ = handle.value
        await handle.wait()


async def test_many_tasks_may_wait_for_one_job(autojump_clock):
    times = []

    async def waiter(handle):
        await handle.wait()
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery, fanout.open_group() as group:
        handle = group.start_soon(trio.sleep, 2)
        nursery.start_soon(waiter, handle)
        nursery.start_soon(waiter, handle)
        group.start_soon(waiter, handle)
        group.start_soon(trio.sleep, 5)
    assert times == [2, 2, 2]


async def test_to_wait_is_always_a_checkpoint():
    async with fanout.open_group() as group:
        handle = group.start_soon(double, 1)
        with trio.testing.assert_checkpoints():
            await handle.wait()
        with trio.testing.assert_checkpoints():
            await handle.wait()
        cancelled = group.start_soon(trio.sleep_forever)
        group.cancel_scope.cancel()
    for over in (handle, cancelled):
        with trio.testing.assert_checkpoints():
            await over.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await over.wait()
        assert scope.cancelled_caught


async def test_a_cancelled_wait_does_nothing_to_the_job(autojump_clock):
    async with fanout.open_group() as group:
        handle = group.start_soon(trio.sleep, 2)
        with trio.move_on_after(1) as scope:
            await handle.wait()
        assert scope.cancelled_caught
        await handle.wait()
        assert trio.current_time() == 2
    assert handle.outcome == Value(None)


async def test_to_wait_returns_when_the_job_failed(autojump_clock):
    async def job():
        await trio.sleep(1)
        raise ValueError

    with pytest.raises(fanout.FanOutError):
        async with fanout.open_group(policy=fanout.Collect()) as group:
            handle = group.start_soon(job)
            await handle.wait()
            assert trio.current_time() == 1
            assert isinstance(handle.outcome, Error)


async def test_a_wait_outside_of_the_group_ends_when_the_job_is_cancelled(autojump_clock):
    times = []

    async def waiter(handle):
        await handle.wait()
        times.append((trio.current_time(), handle.outcome))

    async with trio.open_nursery() as nursery, fanout.open_group(limit=1) as group:
        nursery.start_soon(waiter, group.start_soon(trio.sleep_forever))
        nursery.start_soon(waiter, group.start_soon(double, 1))
        await trio.sleep(3)
        group.cancel_scope.cancel()
    assert times == [(3, None), (3, None)]


async def test_a_job_that_waits_for_an_earlier_one_sees_its_value(autojump_clock):
    async def add_one(handle):
        await handle.wait()
        return int(handle.value) + 1

    async with fanout.open_group(limit=2) as group:
        first = group.start_soon(double, 2)
        second = group.start_soon(add_one, first)
        third = group.start_soon(add_one, second)
    assert third.value == 6


async def test_the_handle_shows_its_job():
    async with fanout.open_group() as group:
        handle = group.start_soon(double, 1)
        assert "job 0: not finished" in repr(handle)
        cancelled = group.start_soon(trio.sleep_forever)
        await handle.wait()
        group.cancel_scope.cancel()
    assert "job 0: Value(2)" in repr(handle)
    assert "job 1: cancelled" in repr(cancelled)


# Wrong use


@pytest.mark.parametrize("policy", [fanout.FailFast, None, 3, fanout.FirstSuccess(), fanout.Settle(move_on_after=3)])
async def test_wrong_policies_are_type_errors(policy):
    with pytest.raises(TypeError, match=r"policy|move_on_after"):
        async with fanout.open_group(policy=policy):
            pytest.fail("the block began")


@pytest.mark.parametrize("limit", [True, 2.5, "3", None, math.nan])
async def test_limits_of_the_wrong_type_are_type_errors(limit):
    with pytest.raises(TypeError, match=r"^limit must be"):
        async with fanout.open_group(limit=limit):
            pytest.fail("the block began")


@pytest.mark.parametrize("limit", [0, -1])
async def test_limits_below_one_are_value_errors(limit):
    with pytest.raises(ValueError, match=r"^limit must be"):
        async with fanout.open_group(limit=limit):
            pytest.fail("the block began")


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
async def test_wrong_timeouts_are_value_errors(seconds):
    with pytest.raises(ValueError, match=r"^item_timeout must be"):
        async with fanout.open_group(item_timeout=seconds):
            pytest.fail("the block began")


@GROUP_POLICIES
async def test_a_coroutine_object_in_place_of_a_function_is_told(policy):
    """And closed, or Python would warn that it was never awaited."""
    async with fanout.open_group(policy=policy) as group:
        with pytest.raises(TypeError, match=r"^fn must be an async function.*without calling it"):
            group.start_soon(double(3))
        with pytest.raises(TypeError, match=r"^fn must be an async function, got 3"):
            group.start_soon(3)
        handle = group.start_soon(double, 1)
    assert handle.index == 0


@GROUP_POLICIES
async def test_a_function_that_returns_no_awaitable_is_wrong_use(policy, autojump_clock):
    with nothing_left(), pytest.raises(TypeError, match=r"open_group\(len\).*in_thread"):
        async with fanout.open_group(policy=policy) as group:
            handle = group.start_soon(len, "abc")
            await trio.sleep_forever()
    assert handle.outcome is None
    with trio.fail_after(1):
        await handle.wait()
    with pytest.raises(RuntimeError, match="cancelled"):
        _ = handle.value


async def test_wrong_arguments_are_a_failure_of_the_job():
    async with fanout.open_group(policy=fanout.Settle()) as group:
        handle = group.start_soon(double)
    with pytest.raises(TypeError, match="positional argument"):
        _ = handle.value


async def test_to_submit_after_the_block_is_a_runtime_error():
    async with fanout.open_group() as group:
        pass
    with pytest.raises(RuntimeError, match="start_soon"):
        group.start_soon(double, 1)
    with pytest.raises(ZeroDivisionError):
        async with fanout.open_group() as group:
            raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="start_soon"):
        group.start_soon(double, 1)


async def test_no_job_is_left_hanging_when_the_group_ends_while_another_task_submits():
    """In any turn of the loop, `start_soon` either raises or the job is done in the end."""
    for turns in range(12):
        handles = []

        async def beside(group):
            for _ in range(turns):  # noqa: B023
                await trio.lowlevel.checkpoint()
            try:
                handles.append(group.start_soon(double, 4))  # noqa: B023
            except RuntimeError:
                pass

        async with trio.open_nursery() as nursery, fanout.open_group() as group:
            nursery.start_soon(beside, group)
            group.start_soon(trio.lowlevel.checkpoint)
        for handle in handles:
            await handle.wait()
            assert handle.value == 8


# Limits


async def test_a_shared_limiter_tells_which_jobs_hold_its_tokens():
    limiter = trio.CapacityLimiter(2)
    tasks = set()

    async def job():
        tasks.add(trio.lowlevel.current_task())
        await trio.sleep_forever()

    with nothing_left(limiter):
        async with fanout.open_group(limit=limiter) as group:
            for _ in range(4):
                group.start_soon(job)
            await wait_all_tasks_blocked()
            assert set(limiter.statistics().borrowers) == tasks
            assert limiter.borrowed_tokens == 2
            assert limiter.statistics().tasks_waiting == 0
            group.cancel_scope.cancel()


async def test_two_groups_share_a_limiter(autojump_clock):
    limiter = trio.CapacityLimiter(3)
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep(1)

    with nothing_left(limiter):
        async with fanout.open_group(limit=limiter) as one, fanout.open_group(limit=limiter) as two:
            for _ in range(6):
                one.start_soon(job)
                two.start_soon(job)
    assert gauge.peak == 3
    assert trio.current_time() == 4


async def test_idle_workers_hold_no_token():
    limiter = trio.CapacityLimiter(1)
    async with fanout.open_group(limit=limiter) as group:
        await group.start_soon(double, 1).wait()
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        assert await fanout.map(double, [1, 2], limit=limiter) == [2, 4]


async def test_a_group_whose_jobs_are_done_ends_though_others_hold_the_tokens(autojump_clock):
    limiter = trio.CapacityLimiter(2)

    async def take_the_other_token():
        limiter.acquire_on_behalf_of_nowait("other")

    async with fanout.open_group(limit=limiter) as group:
        group.start_soon(take_the_other_token)
        group.start_soon(trio.sleep, 1)
    assert trio.current_time() == 1
    limiter.release_on_behalf_of("other")


async def test_the_number_of_tokens_may_change():
    limiter = trio.CapacityLimiter(1)
    gauge = Gauge()
    go = trio.Event()

    async def job():
        with gauge.running():
            await go.wait()

    async with fanout.open_group(limit=limiter) as group:
        group.start_soon(job)
        await wait_all_tasks_blocked()
        limiter.total_tokens = 3
        for _ in range(5):
            group.start_soon(job)
        await wait_all_tasks_blocked()
        assert gauge.now == 3
        go.set()
        await wait_all_tasks_blocked()
        limiter.total_tokens = 0
        go = trio.Event()
        paused = [group.start_soon(job) for _ in range(4)]
        await wait_all_tasks_blocked()
        assert gauge.now == 0
        limiter.total_tokens = 2
        await wait_all_tasks_blocked()
        assert gauge.now == 2
        go.set()
    assert [handle.outcome for handle in paused] == [Value(None)] * 4


async def test_a_job_cannot_open_a_group_on_the_limiter_whose_token_it_holds():
    limiter = trio.CapacityLimiter(5)

    async def job():
        async with fanout.open_group(limit=limiter):
            pytest.fail("the block began")

    with pytest.raises(RuntimeError, match=r"CapacityLimiter.*open_group\(job\)"):
        async with fanout.open_group(limit=limiter) as group:
            group.start_soon(job)


async def test_the_time_limit_is_that_of_each_job(autojump_clock):
    async with fanout.open_group(limit=1, item_timeout=2, policy=fanout.Settle()) as group:
        handles = [group.start_soon(trio.sleep, x) for x in (1, 3, 1, 3)]
    assert trio.current_time() == 6
    assert [type(handle.outcome) for handle in handles] == [Value, Error, Value, Error]
    with pytest.raises(trio.TooSlowError):
        _ = handles[1].value


async def test_a_time_out_names_its_job(autojump_clock):
    with pytest.raises(trio.TooSlowError) as info:
        async with fanout.open_group(item_timeout=2) as group:
            group.start_soon(trio.sleep, 1)
            group.start_soon(trio.sleep, 3)
    assert info.value.__notes__ == ["job 1"]


# Context variables


@LIMITS
@pytest.mark.parametrize("waits", [False, True])
async def test_a_job_sees_the_variables_as_they_were_when_it_was_submitted(limit, waits):
    async def job():
        before = var.get(None)
        if waits:
            await trio.lowlevel.checkpoint()
        assert var.get(None) == before
        var.set("the job's own")
        return before

    async with fanout.open_group(limit=limit_of(limit)) as group:
        handles = [group.start_soon(job)]
        for x in range(10):
            var.set(x)
            handles += [group.start_soon(job), group.start_soon(job)]
        var.set("later")
    assert [handle.value for handle in handles] == [None, *(x for x in range(10) for _ in range(2))]
    assert var.get() == "later"


@LIMITS
async def test_a_job_found_by_a_job_sees_the_variables_of_that_one(limit, autojump_clock):
    seen = {}

    async def job(group, path):
        seen[path] = var.get("")
        var.set(path)
        for step in "abc" if len(path) < 3 else "":
            group.start_soon(job, group, path + step)
        await trio.sleep(len(path))
        assert var.get() == path
        var.set("changed, too late for anybody")

    async with fanout.open_group(limit=limit_of(limit)) as group:
        group.start_soon(job, group, "")
    assert len(seen) == 40
    assert all(parent == path[:-1] for path, parent in seen.items())


@LIMITS
async def test_jobs_start_in_order_though_their_variables_differ(limit, autojump_clock):
    gauge = Gauge()

    async def job(x):
        with gauge.running(x):
            assert var.get() == x // 2
            await trio.sleep(x % 3)

    async with fanout.open_group(limit=limit_of(limit)) as group:
        for x in range(30):
            var.set(x // 2)
            group.start_soon(job, x)
    assert gauge.began == list(range(30))


async def test_jobs_that_got_their_tokens_together_see_their_own_variables():
    """The limiter wakes those who wait for it in one batch, whose order is Trio's secret."""
    limiter = trio.CapacityLimiter(8)
    gauge = Gauge()

    async def job(x):
        with gauge.running(x):
            await trio.lowlevel.checkpoint()
            return var.get()

    others = [object() for _ in range(8)]
    for other in others:
        limiter.acquire_on_behalf_of_nowait(other)
    with nothing_left():
        async with fanout.open_group(limit=limiter) as group:
            handles = []
            for x in range(12):
                var.set(x)
                handles.append(group.start_soon(job, x))
            await wait_all_tasks_blocked()
            assert gauge.began == []
            for other in others:
                limiter.release_on_behalf_of(other)
    assert [handle.value for handle in handles] == list(range(12))
    assert gauge.began == list(range(12))


async def test_an_equal_value_that_is_another_object_is_another_value():
    async def job():
        return var.get()

    lists = [[], []]
    async with fanout.open_group(limit=1) as group:
        handles = []
        for one in lists:
            var.set(one)
            handles.append(group.start_soon(job))
    assert handles[0].value is lists[0]
    assert handles[1].value is lists[1]


async def test_tasks_that_a_job_starts_see_its_variables():
    async def child():
        assert var.get() == "the job's"

    async def job():
        var.set("the job's")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async with fanout.open_group() as group:
        group.start_soon(job)


# What is left behind


async def test_a_group_keeps_neither_arguments_nor_values_nor_contexts_of_finished_jobs():
    things = Things()

    async def job(thing):
        var.set(things.make())
        await trio.lowlevel.checkpoint()
        return thing

    async def submit(group):
        for _ in range(10):
            group.start_soon(job, things.make())

    async with fanout.open_group(limit=3) as group:
        await submit(group)
        assert things.alive == 10
        await wait_all_tasks_blocked()
        assert things.alive == 0


async def test_a_group_keeps_no_arguments_of_jobs_that_never_started():
    things = Things()

    async def job(thing):
        await trio.sleep_forever()

    async with fanout.open_group(limit=3) as group:
        for _ in range(10):
            group.start_soon(job, things.make())
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)
    assert things.alive == 0


async def test_a_kept_handle_keeps_the_value_and_not_the_arguments():
    things = Things()

    async def job(thing):
        await trio.lowlevel.checkpoint()

    def submit(group):
        var.set(things.make())
        handle = group.start_soon(job, things.make())
        var.set(None)
        return handle

    async with fanout.open_group() as group:
        handle = submit(group)
        await handle.wait()
        await wait_all_tasks_blocked()
        assert things.alive == 0
    assert handle.value is None


ENDS = ["success", "failure", "block", "interrupt", "outside", "own scope", "finder", "cleanup", "waiter"]


async def work(kind, group, x):
    """A job whose group ends in the way that `kind` says; its frame holds the group, as that of most jobs does."""
    if x < 4:
        return Thing()
    await trio.sleep(x % 3)
    match kind:
        case "failure":
            raise ValueError(x)
        case "interrupt":
            raise KeyboardInterrupt
        case "outside" | "block":
            await trio.sleep_forever()
        case "own scope":
            group.cancel_scope.cancel()
            await trio.sleep_forever()
        case "finder" if x < 20:
            group.start_soon(work, kind, group, x + 4)
        case "cleanup":
            await fail_when_cancelled(KeyError(x))
    return Thing()


async def attempt(kind, policy, limit):
    """One group, and nothing kept of it."""
    with trio.move_on_after(5 if kind in ("outside", "cleanup") else 1000):
        with suppress(Exception, KeyboardInterrupt):
            async with fanout.open_group(limit=limit, policy=policy) as group:
                for x in range(8):
                    group.start_soon(work, kind, group, x)
                if kind == "block":
                    await trio.sleep(4)
                    raise OSError
                if kind == "waiter":
                    await group.start_soon(work, kind, group, 5).wait()


@GROUP_POLICIES
@pytest.mark.parametrize("kind", ENDS)
async def test_no_reference_cycle_is_left(kind, policy, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    await attempt(kind, policy, 3)  # what is made once and kept forever is no leak
    for limit in (3, limiter):
        with no_cycles(), nothing_left(limiter):
            await attempt(kind, policy, limit)


HANDLES = []


def value_of_handle():
    return HANDLES[0].value


async def test_asking_for_the_value_of_a_failed_job_again_does_not_make_its_traceback_longer():
    async def fail():
        raise ValueError("failed")

    async with fanout.open_group(policy=fanout.Settle()) as group:
        handle = group.start_soon(fail)

    def read():
        try:
            return handle.value
        except ValueError as exc:
            return len(traceback.extract_tb(exc.__traceback__))

    first = read()
    assert [read() for _ in range(100)] == [first] * 100
    assert "fail" in [frame.name for frame in traceback.extract_tb(handle.outcome.error.__traceback__)]


async def test_to_ask_a_failed_job_for_its_value_leaves_no_reference_cycle():
    async def job():
        raise ValueError

    def ask():
        try:
            value_of_handle()
        except ValueError:
            pass

    async def once():
        async with fanout.open_group(policy=fanout.Settle()) as group:
            HANDLES.append(group.start_soon(job))
        ask()
        HANDLES.clear()

    await check_no_cycles(once)


async def test_no_reference_cycle_is_left_by_a_job_that_closes_over_the_group(autojump_clock):
    async def once(policy):
        async def job(submit, x):
            if x == 0:
                group.start_soon(submit, submit, 3)
            await trio.sleep(x)
            if x == 2:
                raise ValueError

        try:
            async with fanout.open_group(policy=policy) as group:
                for x in range(4):
                    group.start_soon(job, job, x)
        except (ValueError, fanout.FanOutError):
            pass

    for policy in (fanout.FailFast(), fanout.Collect(), fanout.Settle()):
        await check_no_cycles(once, policy)
