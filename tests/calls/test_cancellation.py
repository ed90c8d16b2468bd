"""Cancellation from outside, what outranks it, and exceptions that are not an `Exception`."""

import signal
import sys
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    DO_POLICIES,
    POLICIES,
    Gauge,
    fail_when_cancelled,
    foreign_cancelled,
    limit_of,
    nothing_left,
    printed,
    workers,
)

# Cancellation from outside


@POLICIES
async def test_cancellation_from_outside_is_prompt_and_propagates(shared, make, policy, autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(x)
            if isinstance(policy, fanout.FirstSuccess):
                await trio.sleep_forever()

    with nothing_left(), trio.move_on_after(5) as scope:
        await fanout.map(fn, make([1, 2, 9, 9, 9, 9, 9]), limit=limit_of(3, shared), policy=policy)
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    assert gauge.now == 0
    assert len(gauge.began) < 7


@POLICIES
async def test_cancellation_waits_for_the_cleanup_of_items(policy, autojump_clock):
    async def fn(x):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(x)

    with trio.move_on_after(5) as scope:
        await fanout.map(fn, [1, 2, 3], policy=policy)
    assert scope.cancelled_caught
    assert trio.current_time() == 8


@POLICIES
async def test_cancellation_is_not_lost_though_every_item_ends_well(policy, autojump_clock):
    """Nothing was cancelled, so there may be a result; but then the next checkpoint tells."""

    async def fn(x):
        with trio.CancelScope(shield=True):
            await trio.sleep(8)
        return x

    with trio.move_on_after(5) as scope:
        await fanout.map(fn, [1, 2, 3], policy=policy)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@DO_POLICIES
async def test_failures_outrank_a_cancellation(policy, make, autojump_clock):
    """A time-out never hides the error behind it."""

    async def fn(x):
        if x == 0:
            return x
        try:
            await trio.sleep(x)
        except trio.Cancelled:
            if x == 7:
                raise KeyError("in the cleanup") from None
            raise
        raise ValueError(x)

    with trio.move_on_after(5) as scope:
        if policy == fanout.Collect():
            with pytest.raises(fanout.FanOutError) as excinfo:
                await fanout.map(fn, make([0, 9, 7, 3]), policy=policy)
            assert excinfo.value.indices == (2, 3)
            assert excinfo.value.results == {0: 0}
            assert excinfo.value.total == 4
        else:
            with pytest.raises(KeyError) as raised:
                await fanout.map(fn, make([0, 9, 7]), policy=policy)
            assert raised.value.__notes__ == ["item 2"]
    assert not scope.cancelled_caught


async def test_move_on_after_around_a_failed_run_raises_the_failure(autojump_clock):
    async def fn(x):
        if x == 0:
            raise ValueError("failed")
        with trio.CancelScope(shield=True):
            await trio.sleep(9)

    with pytest.raises(ValueError, match="failed"), trio.move_on_after(5):
        await fanout.map(fn, range(2))


async def test_a_failure_of_a_shielded_item_outranks_an_earlier_cancellation(autojump_clock):
    async def fn(x):
        with trio.CancelScope(shield=True):
            await trio.sleep(9)
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"), trio.move_on_after(5):
        await fanout.map(fn, range(2))
    with pytest.raises(ValueError, match="failed"), trio.fail_after(5):
        await fanout.map(fn, range(2))


@pytest.mark.parametrize("policy", [fanout.Settle(), fanout.Settle(move_on_after=3), fanout.FirstSuccess()], ids=str)
async def test_a_cancellation_outranks_failures_where_they_are_no_errors(policy, autojump_clock):
    async def fn(x):
        if x == 0:
            raise ValueError
        try:
            await trio.sleep(9)
        finally:
            if x == 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(9)
                raise KeyError
        return x

    with trio.move_on_after(5) as scope:
        await fanout.map(fn, range(3), policy=policy)
    assert scope.cancelled_caught


async def test_cancellation_while_first_success_cleans_up_is_not_lost(autojump_clock):
    async def fn(x):
        if x == 0:
            await trio.sleep(1)
            return x
        with trio.CancelScope(shield=True):
            await trio.sleep(9)
        return x

    with trio.move_on_after(5) as scope:
        await fanout.map(fn, range(2), policy=fanout.FirstSuccess())
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert trio.current_time() == 9


@pytest.mark.parametrize("policy", [fanout.Settle(), fanout.FirstSuccess()], ids=str)
@pytest.mark.parametrize("count", [1, 2, 9])
async def test_a_cancellation_that_items_turned_into_failures_propagates(count, shared, make, policy, autojump_clock):
    async def fn(x):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError from None

    after = []
    with trio.move_on_after(5) as scope:
        await fanout.map(fn, make(range(count)), limit=limit_of(2, shared), policy=policy)
        after.append("the call returned")
    assert scope.cancelled_caught
    assert after == []


@pytest.mark.parametrize("policy", [fanout.Collect(), fanout.Settle(), fanout.Settle(move_on_after=3)], ids=str)
async def test_no_item_is_started_after_one_that_failed_out_of_the_cancellation(shared, make, policy, autojump_clock):
    began = []

    async def fn(x):
        began.append(x)
        await fail_when_cancelled(ValueError)

    with trio.move_on_after(5), suppress(fanout.FanOutError):
        await fanout.map(fn, make(range(100)), limit=limit_of(2, shared), policy=policy)
    assert began == [0, 1]


async def test_no_item_is_started_after_an_interrupt(autojump_clock):
    """Though the one that raised it puts a token back, and another item waits for it."""
    limiter = trio.CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("other")
    began = []

    async def fn(x):
        began.append(x)
        await trio.sleep(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await fanout.map(fn, range(10), limit=limiter)
    assert began == [0]
    assert limiter.borrowed_tokens == 1


@POLICIES
async def test_an_item_that_cancels_the_callers_scope(policy, make):
    with trio.CancelScope() as scope:

        async def fn(x):
            scope.cancel()
            await trio.sleep_forever()

        await fanout.map(fn, make([1, 2]), policy=policy)
    assert scope.cancelled_caught


@POLICIES
async def test_an_item_that_cancels_the_callers_scope_and_then_ends(policy):
    """Never waits itself, so that only the run can notice."""
    ran = []
    with trio.CancelScope() as scope:

        async def fn(x):
            ran.append(x)
            scope.cancel()
            if policy == fanout.FirstSuccess():
                raise ValueError

        await fanout.map(fn, range(1_000_000), policy=policy, limit=3)
    assert scope.cancelled_caught
    assert len(ran) < 1_000_000


async def test_a_cancelled_scope_inside_an_item_stays_inside(autojump_clock):
    async def fn(x):
        with trio.move_on_after(1) as scope:
            await trio.sleep(x)
        return scope.cancelled_caught

    assert await fanout.map(fn, [0, 2, 0.5, 5]) == [False, True, False, True]


@POLICIES
async def test_a_foreign_cancelled_from_a_scope_of_a_nested_run(policy, autojump_clock):
    """The inner run is cancelled by the outer item's own scope; the outer run knows nothing of it."""

    async def outer(x):
        with trio.move_on_after(x):
            await fanout.map(trio.sleep, [100, 100])
        return "moved on"

    result = await fanout.map(outer, [1, 2], policy=policy)
    if isinstance(policy, fanout.Settle):
        assert [one.unwrap() for one in result] == ["moved on"] * 2
    else:
        assert result in (["moved on"] * 2, "moved on")


async def test_siblings_cancellation_never_surfaces_instead_of_the_cause(autojump_clock):
    async def fn(x):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 100)
            await trio.sleep(x)
            if x == 2:
                raise OSError("root cause")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=r"^root cause$"), flatten_subgroups=True):
        await fanout.map(fn, [1, 2, 3], limit=2)


# KeyboardInterrupt and its like


class OwnExit(BaseException):
    pass


KINDS = pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, OwnExit])


@POLICIES
@KINDS
async def test_a_base_exception_cancels_the_run_and_propagates_unwrapped(kind, shared, make, policy, autojump_clock):
    error = kind("stop")
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            if x == 0:
                raise ValueError("an ordinary failure") if not isinstance(policy, fanout.FailFast) else error
            await trio.sleep(x)
            if x == 3:
                raise error
            await trio.sleep_forever()

    with nothing_left(), pytest.raises(kind) as excinfo:
        await fanout.map(fn, make([0, 1, 2, 3, 4, 5]), limit=limit_of(4, shared), policy=policy)
    assert excinfo.value is error
    assert gauge.now == 0
    assert trio.current_time() <= 3


@POLICIES
@KINDS
async def test_it_propagates_unwrapped_from_do_and_fan_out_too(kind, policy):
    async def fn(x):
        raise kind

    with pytest.raises(kind):
        await fanout.fan_out([fn, fn], 1, policy=policy)
    if isinstance(policy, (fanout.FailFast, fanout.Collect)):
        with pytest.raises(kind):
            await fanout.do(fn, [1, 2], policy=policy)


@POLICIES
@KINDS
async def test_it_propagates_unwrapped_with_a_cancellation_from_outside(kind, make, policy, autojump_clock):
    """As one exception out of a nursery that holds Cancelled as well, and failures."""
    error = kind("stop")

    async def fn(x):
        try:
            await trio.sleep_forever()
        finally:
            if x == 1:
                raise error
            if x == 2:
                raise ValueError

    with pytest.raises(kind) as excinfo, trio.move_on_after(1):
        await fanout.map(fn, make([0, 1, 2, 3]), policy=policy)
    assert excinfo.value is error


@POLICIES
async def test_two_of_them_at_once_give_one(policy):
    event = trio.Event()

    async def fn(x):
        if x == 2:
            await wait_all_tasks_blocked()
            event.set()
        else:
            await event.wait()
        raise (KeyboardInterrupt, SystemExit, KeyboardInterrupt)[x]

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        await fanout.map(fn, range(3), policy=policy)


@POLICIES
async def test_a_group_that_holds_one_is_no_failure_and_kept_whole(policy):
    group = BaseExceptionGroup("mine", [KeyboardInterrupt(), ValueError()])

    async def fn(x):
        raise group

    with pytest.RaisesGroup(KeyboardInterrupt, ValueError, match=r"^mine$") as excinfo:
        await fanout.map(fn, [1], policy=policy)
    assert excinfo.value.exceptions == group.exceptions  # Trio's nursery may copy groups, but not what is in them


@POLICIES
async def test_a_group_of_one_and_of_cancelled_keeps_the_interrupt(policy, autojump_clock):
    async def child(interrupt):
        try:
            await trio.sleep_forever()
        finally:
            if interrupt:
                raise KeyboardInterrupt

    async def fn(x):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, False)
            nursery.start_soon(child, True)

    with pytest.RaisesGroup(KeyboardInterrupt), trio.move_on_after(1):
        await fanout.map(fn, [1, 2], policy=policy)


async def test_an_exit_that_is_frozen_propagates(autojump_clock):
    class Exit(BaseException):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    async def fn(x):
        try:
            await trio.sleep(x)
        finally:
            raise Exit

    with pytest.raises(Exit):
        await fanout.map(fn, [1, 2], item_timeout=5)
    with pytest.raises(Exit), trio.move_on_after(3):
        await fanout.map(fn, [5, 6])


# A real SIGINT


@POLICIES
def test_sigint_in_an_item_propagates_unwrapped(policy, make):
    async def fn(x):
        if x == 1:
            signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    async def main():
        with nothing_left():
            await fanout.map(fn, make(range(3)), policy=policy)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


def test_sigint_interrupts_an_item_that_computes(make):
    """It comes out right there, and not at the next checkpoint of the main task."""
    reached = []

    async def fn(x):
        signal.raise_signal(signal.SIGINT)
        reached.append(x)

    with pytest.raises(KeyboardInterrupt):
        trio.run(partial(fanout.map, fn, make([1, 2])))
    with pytest.raises(KeyboardInterrupt):
        trio.run(partial(fanout.map, fn, make([1, 2]), limit=1, item_timeout=5))
    assert reached == []


@POLICIES
def test_sigint_while_the_caller_waits_propagates_unwrapped(policy, make, shared):
    """It reaches the main task, which waits inside of the call."""

    async def interrupt():
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)  # a system task is protected: Trio delivers it to the main task

    async def main():
        trio.lowlevel.spawn_system_task(interrupt)
        try:
            await fanout.map(trio.sleep, make([1000] * 3), limit=limit_of(2, shared), policy=policy)
        finally:
            assert workers() == 0

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


@POLICIES
def test_sigint_while_an_async_source_waits_propagates_unwrapped(policy):
    closed = []

    async def source():
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            closed.append(True)

    async def interrupt():
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    async def fn(x):
        await trio.sleep_forever()

    async def main():
        trio.lowlevel.spawn_system_task(interrupt)
        await fanout.map(fn, source(), policy=policy)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert closed == [True]


def test_sigint_that_comes_with_failures_and_a_cancellation_wins():
    async def fn(x):
        await fail_when_cancelled(ValueError)

    async def interrupt():
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    async def main():
        trio.lowlevel.spawn_system_task(interrupt)
        with suppress(ValueError):
            await fanout.map(fn, range(3))

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


@POLICIES
async def test_a_cancellation_from_elsewhere_is_not_taken_for_the_end(policy):
    """An item that raises a Cancelled which it kept from somewhere else: as if it were awaited directly."""
    kept = await foreign_cancelled()

    async def fn(x):
        if x:
            raise kept
        await trio.sleep_forever()
        return x

    with pytest.raises(trio.Cancelled):
        await fanout.map(fn, range(10), limit=2, policy=policy)


async def test_a_cancellation_from_elsewhere_out_of_a_source():
    kept = await foreign_cancelled()

    def source():
        yield 0
        raise kept

    async def async_source():
        yield 0
        raise kept

    for make in (source, async_source):
        with pytest.raises(trio.Cancelled):
            await fanout.map(trio.sleep, make())


async def test_a_cancellation_from_elsewhere_is_not_the_end_of_a_stream():
    kept = await foreign_cancelled()
    seen = []

    async def fn(x):
        if x == 3:
            raise kept
        return x

    with pytest.raises(trio.Cancelled):
        async with fanout.stream(fn, range(10), limit=1) as results:
            async for index, _, _ in results:
                seen.append(index)
    assert seen == [0, 1, 2][: len(seen)]  # the rest may be dropped, as where the block is cancelled


async def test_jobs_of_a_cancelled_group_do_not_start():
    began = []

    async def job(x):
        began.append(x)

    async with fanout.open_group(limit=1) as group:
        group.cancel_scope.cancel()
        handles = [group.start_soon(job, x) for x in range(100)]
    assert began == []
    for handle in handles:
        await handle.wait()


async def test_an_interrupt_between_the_token_and_the_item_gives_the_token_back():
    """Ctrl-C may come between any two steps of a worker."""
    limiter = trio.CapacityLimiter(1)
    plain = limiter.acquire_on_behalf_of_nowait

    def acquire(borrower):
        plain(borrower)
        raise KeyboardInterrupt

    limiter.acquire_on_behalf_of_nowait = acquire
    with pytest.raises(KeyboardInterrupt):
        await fanout.map(trio.sleep, [0], limit=limiter)
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("how", ["outside", "fail-fast", "stop"])
async def test_workers_that_wait_for_a_token_are_turned_away_once_each(how):
    """The work must not grow with the square of how many they are."""

    async def work(waiting):
        """How many functions are called until all are gone."""
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += event == "call"

        async def fn(x):
            await wait_all_tasks_blocked()
            sys.setprofile(count)
            if how == "outside":
                outside.cancel()
            elif how == "stop":
                results.stop()
            else:
                raise ValueError

        limiter = trio.CapacityLimiter(waiting + 1)
        for x in range(waiting):
            limiter.acquire_on_behalf_of_nowait(x)
        try:
            with trio.CancelScope() as outside, suppress(ValueError):
                async with fanout.stream(fn, range(10 * waiting), limit=limiter) as results:
                    async for _ in results:
                        pass
        finally:
            sys.setprofile(None)
        assert limiter.borrowed_tokens == waiting
        return calls

    assert 0 < await work(400) < 5 * await work(100)


@pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Collect(max_failures=1)], ids=str)
async def test_a_failure_that_was_raised_out_of_its_group_while_the_run_is_cancelled(policy):
    """Its context is the group that it is a member of, which is a circle."""

    async def fn(x):
        if x == 0:
            await trio.lowlevel.checkpoint()
            raise KeyError("first")
        try:
            await trio.sleep_forever()
        finally:
            try:
                raise ExceptionGroup("group", [ValueError("second")])
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    with pytest.raises((KeyError, fanout.FanOutError)) as raised:
        await fanout.map(fn, range(2), policy=policy)
    assert "KeyError: 'first'" in printed(raised.value)


async def test_after_a_failure_that_came_out_of_a_cancellation_no_item_is_taken():
    """Even if the slice of time is not over, and functions never wait."""
    started = []

    async def work(n):
        started.append(n)
        if n == 0:
            try:
                await trio.sleep_forever()
            except trio.Cancelled as exc:
                raise ValueError(n) from exc

    async def cancel():
        await wait_all_tasks_blocked()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with trio.CancelScope() as scope:
            await fanout.map(work, range(10), limit=1, policy=fanout.Settle())
    assert scope.cancelled_caught
    assert started == [0]
