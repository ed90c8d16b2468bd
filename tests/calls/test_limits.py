"""The limit: private or shared, changed in the middle of a run, and never a deadlock in silence."""

import functools
import math
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import POLICIES, Gauge, aiter_of, double, nothing_left, workers


class Clocked:
    """An item function that sleeps as long as the item says, and notes when each item began."""

    def __init__(self):
        self.began = []
        self.gauge = Gauge()

    async def __call__(self, seconds):
        self.began.append(trio.current_time())
        with self.gauge.running():
            await trio.sleep(seconds)


async def hold(limiter, seconds, *, after=0, log=None):
    """Another user of the limiter."""
    await trio.sleep(after)
    async with limiter:
        if log is not None:
            log.append(trio.current_time())
        await trio.sleep(seconds)


# Sharing


async def test_shared_limiter_bounds_all_runs_together(make, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    fn = Clocked()
    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(functools.partial(fanout.map, fn, make([1] * 6), limit=limiter))
    assert fn.gauge.peak == 3
    assert trio.current_time() == 8  # 24 seconds of work, three at a time


async def test_every_running_item_holds_one_token_borrowed_by_its_task(make):
    limiter = trio.CapacityLimiter(5)

    async def fn(x):
        assert trio.lowlevel.current_task() in limiter.statistics().borrowers
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == len(limiter.statistics().borrowers)
        assert trio.lowlevel.current_task() in limiter.statistics().borrowers

    with nothing_left(limiter):
        await fanout.do(fn, make(range(12)), limit=limiter)


async def test_borrowers_are_the_worker_tasks(autojump_clock):
    limiter = trio.CapacityLimiter(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, trio.sleep, [1, 1], limit=limiter))
        await wait_all_tasks_blocked()
        assert {task.name for task in limiter.statistics().borrowers} == {"do(sleep)"}
        assert limiter.borrowed_tokens == 2


@POLICIES
async def test_the_token_is_put_back_however_the_item_ends(make, policy, autojump_clock):
    async def fn(x):
        match x:
            case 0:
                await trio.sleep(1)
                raise ValueError
            case 1:
                await trio.sleep(9)  # timed out
            case 2:
                await trio.sleep(2)
            case 3:
                raise KeyboardInterrupt
            case _:
                await trio.sleep_forever()

    for items in ([0], [1], [2], [0, 1, 2], [0, 1, 2, 4, 5], [2, 3], [4, 3]):
        limiter = trio.CapacityLimiter(2)
        with nothing_left(limiter), suppress(Exception, KeyboardInterrupt):
            with trio.move_on_after(30):
                await fanout.map(fn, make(items), limit=limiter, policy=policy, item_timeout=3)
        assert limiter.borrowed_tokens == 0


async def test_a_run_waits_its_turn_in_the_limiters_queue(make, autojump_clock):
    """First come, first served: with one token, the others that come in turn with each item's worker."""
    limiter = trio.CapacityLimiter(1)
    fn = Clocked()
    log = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([2, 2, 2]), limit=limiter))
        nursery.start_soon(functools.partial(hold, limiter, 2, after=1, log=log))
        nursery.start_soon(functools.partial(hold, limiter, 2, after=1.5, log=log))
        nursery.start_soon(functools.partial(hold, limiter, 2, after=5, log=log))
    # The run's worker goes to the end of the line after each item.
    assert fn.began == [0, 6, 10]
    assert log == [2, 4, 8]


async def test_a_run_does_not_keep_others_waiting_after_its_items(make, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(fanout.do, trio.sleep, make([1, 5]), limit=limiter))
            await trio.sleep(2)
            limiter.acquire_nowait()  # the token of the item that is done
            limiter.release()


async def test_a_run_whose_items_are_done_returns_though_others_hold_the_tokens(make, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(hold, limiter, 1000, after=0.5))
        nursery.start_soon(functools.partial(hold, limiter, 1000, after=0.75))
        nursery.start_soon(functools.partial(hold, limiter, 1000, after=0.875))
        await fanout.map(trio.sleep, make([1, 2]), limit=limiter)
        assert trio.current_time() == 2
        nursery.cancel_scope.cancel()


async def test_a_run_returns_though_its_source_ends_while_others_hold_all_tokens(autojump_clock):
    limiter = trio.CapacityLimiter(1)

    async def source():
        yield 1
        await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(hold, limiter, 1000, after=0.5))
        await fanout.map(trio.sleep, source(), limit=limiter)
        assert trio.current_time() == 6  # the source is asked again when its item is done
        nursery.cancel_scope.cancel()


async def test_an_idle_async_source_sits_on_no_shared_token(autojump_clock):
    limiter = trio.CapacityLimiter(2)
    send, receive = trio.open_memory_channel[int](0)
    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(fanout.do, double, receive, limit=limiter))
            for x in range(5):
                await send.send(x)
            await wait_all_tasks_blocked()
            assert limiter.borrowed_tokens == 0
            assert limiter.statistics().tasks_waiting == 0
            await send.aclose()


async def test_no_task_waits_for_a_token_for_an_item_that_does_not_exist(autojump_clock):
    limiter = trio.CapacityLimiter(4)
    for _ in range(4):
        limiter.acquire_on_behalf_of_nowait(object())
    for make in (list, iter, aiter_of):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(fanout.do, double, make([1, 2]), limit=limiter))
            await wait_all_tasks_blocked()
            assert limiter.statistics().tasks_waiting == 2
            nursery.cancel_scope.cancel()


async def test_items_that_wait_for_a_token_count_as_taken(source_class, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    source = source_class(range(50))

    async def fn(x):
        await trio.sleep(1)
        source.unfinished -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(hold, limiter, 10))
        nursery.start_soon(functools.partial(hold, limiter, 5))
        await wait_all_tasks_blocked()
        await fanout.do(fn, source, limit=limiter)
    assert source.peak == 3


async def test_workers_on_a_shared_limiter_do_not_grow_without_bound(autojump_clock):
    limiter = trio.CapacityLimiter(3)
    for _ in range(3):
        limiter.acquire_on_behalf_of_nowait(object())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, double, range(1000), limit=limiter))
        for _ in range(20):
            await wait_all_tasks_blocked()
            assert 1 <= workers("do(") <= 3
        nursery.cancel_scope.cancel()


async def test_private_limiters_of_two_runs_are_their_own(autojump_clock):
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(functools.partial(fanout.do, fn, [1] * 4, limit=2))
    assert fn.gauge.peak == 4
    assert trio.current_time() == 2


# Changes of total_tokens


async def test_a_raised_limit_is_followed_when_the_next_item_finishes_at_the_latest(make, autojump_clock):
    limiter = trio.CapacityLimiter(1)
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([4] * 9), limit=limiter))
        await trio.sleep(2)
        limiter.total_tokens = 4
        await trio.sleep(3)
        assert fn.gauge.now == 4
    assert fn.gauge.peak == 4
    assert fn.began[0] == 0
    assert all(2 <= time <= 4 for time in fn.began[1:4])
    assert trio.current_time() <= 12


async def test_a_limit_raised_to_infinity_is_followed(make, autojump_clock):
    limiter = trio.CapacityLimiter(1)
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([4] * 200), limit=limiter))
        await trio.sleep(2)
        limiter.total_tokens = math.inf
        await trio.sleep(3)
        assert fn.gauge.now == 199
    assert trio.current_time() == 8


async def test_a_lowered_limit_is_followed_as_items_finish(make, autojump_clock):
    limiter = trio.CapacityLimiter(4)
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([4] * 4 + [1] * 6), limit=limiter))
        await trio.sleep(2)
        limiter.total_tokens = 2
        assert fn.gauge.now == 4  # no item is interrupted
        await trio.sleep(2.5)
        assert fn.gauge.now == 2
    assert fn.began == [0] * 4 + [4, 4, 5, 5, 6, 6]


async def test_no_tokens_pause_a_run_and_new_ones_resume_it(make, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    fn = Clocked()
    with nothing_left(limiter):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(fanout.do, fn, make([4] * 6), limit=limiter))
            await trio.sleep(2)
            limiter.total_tokens = 0
            await trio.sleep(100)
            assert fn.gauge.now == 0
            assert fn.began == [0, 0]
            limiter.total_tokens = 2
    assert fn.began[2] == 102
    assert fn.gauge.peak == 2
    assert trio.current_time() <= 114


async def test_a_run_may_begin_without_tokens(make, autojump_clock):
    limiter = trio.CapacityLimiter(1)
    limiter.total_tokens = 0
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([4] * 4), limit=limiter))
        await trio.sleep(10)
        assert fn.began == []
        limiter.total_tokens = 3
    assert fn.began[0] == 10
    assert len(fn.began) == 4
    assert trio.current_time() <= 18


async def test_an_item_may_change_the_limit_itself(autojump_clock):
    limiter = trio.CapacityLimiter(1)
    running = Gauge()

    async def fn(x):
        with running.running():
            await trio.sleep(1)
            limiter.total_tokens = 3 if x < 3 else 1

    await fanout.do(fn, range(10), limit=limiter)
    assert running.peak == 3


async def test_lowering_and_raising_again_reaches_the_full_number(make, autojump_clock):
    limiter = trio.CapacityLimiter(5)
    fn = Clocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, make([1] * 40), limit=limiter))
        await trio.sleep(1.5)
        limiter.total_tokens = 1
        await trio.sleep(3)
        assert fn.gauge.now == 1
        limiter.total_tokens = 5
        await trio.sleep(1.25)
        assert fn.gauge.now == 5
    assert fn.gauge.peak == 5


async def test_cancellation_while_paused_is_prompt(autojump_clock):
    limiter = trio.CapacityLimiter(1)
    limiter.total_tokens = 0
    for make in (list, iter, aiter_of):
        with nothing_left(limiter), trio.move_on_after(3) as scope:
            await fanout.map(double, make(range(5)), limit=limiter)
        assert scope.cancelled_caught
    assert trio.current_time() == 9


# Deadlocks


async def nested(x, limiter):
    return await fanout.map(double, [1], limit=limiter)


@pytest.mark.parametrize("tokens", [1, 2, math.inf])
@pytest.mark.parametrize("call", ["map", "do", "fan_out"])
async def test_a_caller_that_holds_a_token_is_a_runtime_error(call, tokens):
    """Whether or not tokens are left."""
    limiter = trio.CapacityLimiter(tokens)
    ran = []

    async def fn(x):
        ran.append(x)

    async with limiter:
        with pytest.raises(RuntimeError) as excinfo, nothing_left(limiter):
            if call == "fan_out":
                await fanout.fan_out([fn], 1, limit=limiter)
            else:
                await getattr(fanout, call)(fn, [1], limit=limiter)
        message = str(excinfo.value)
        assert repr(limiter) in message
        assert repr(trio.lowlevel.current_task()) in message
    assert ran == []


async def test_a_nested_run_on_the_same_limiter_is_a_runtime_error():
    limiter = trio.CapacityLimiter(10)
    with pytest.raises(RuntimeError, match="map") as excinfo, nothing_left(limiter):
        await fanout.map(functools.partial(nested, limiter=limiter), [1, 2], limit=limiter)
    assert repr(limiter)[:20] in str(excinfo.value)
    assert "map(nested)" in str(excinfo.value)


@pytest.mark.parametrize("items", [[], [1]])
async def test_a_token_held_further_up_the_tree_counts(items):
    limiter = trio.CapacityLimiter(10)
    caught = []

    async def child():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grandchild)

    async def grandchild():
        try:
            await fanout.map(double, items, limit=limiter)
        except RuntimeError as exc:
            caught.append(exc)

    async with limiter, trio.open_nursery() as nursery:
        nursery.start_soon(child)
    assert len(caught) == 1
    assert repr(trio.lowlevel.current_task()) in str(caught[0])


async def test_a_token_held_beside_or_below_is_no_deadlock(autojump_clock):
    limiter = trio.CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("no task at all")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, limiter, 5)
        await wait_all_tasks_blocked()
        assert await fanout.map(double, [1, 2], limit=limiter) == [2, 4]
    assert trio.current_time() == 5


async def test_nested_runs_with_limits_of_their_own_are_fine():
    outer, inner = trio.CapacityLimiter(2), trio.CapacityLimiter(1)
    results = await fanout.map(functools.partial(nested, limiter=inner), range(5), limit=outer)
    assert results == [[2]] * 5
