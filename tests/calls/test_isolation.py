"""Items are isolated in their cancel scopes and nurseries, as in tasks of their own."""

import gc
import math
import random
import signal
from contextlib import aclosing

import pytest
import trio
from outcome import Error, Value
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import GROUP_POLICIES, POLICIES, busy, limit_of, notes_of, nothing_left, printed

# An async generator that is left with a scope open is closed by the garbage collector, of which Trio warns.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")

LIMITS = pytest.mark.parametrize("limit", [1, 2, 40, "shared 2"])
SCOPES = pytest.mark.parametrize("what", ["deadline", "shield", "cancelled", "plain"])


@pytest.fixture(autouse=True)
def _collected():
    """Generators that a test has left are closed while the warning is ignored."""
    yield
    gc.collect()


def open_scope(what):
    """A scope that is entered and never left."""
    scope = trio.CancelScope(shield=what == "shield")
    if what == "deadline":
        scope.deadline = trio.current_time() + 1
    scope.__enter__()
    if what == "cancelled":
        scope.cancel()
    return scope


async def rows(seconds):
    with trio.move_on_after(seconds):
        for row in range(3):
            yield row


def leaves_open(what):
    async def work(n):
        if n == 0:
            open_scope(what)
            return n
        await trio.sleep(3)
        return n

    return work


async def test_a_loop_over_an_async_generator_that_is_left_touches_no_other_item(autojump_clock):
    async def work(n):
        if n == 0:
            async for row in rows(1):
                return row
        await trio.sleep(3)
        return n

    assert await fanout.map(work, range(4), limit=1) == [0, 1, 2, 3]
    assert trio.current_time() == 9


@LIMITS
@SCOPES
async def test_an_item_that_leaves_a_scope_open_has_its_result(make, what, limit, autojump_clock):
    limit = limit_of(limit)
    with nothing_left(*[limit] if isinstance(limit, trio.CapacityLimiter) else []):
        assert await fanout.map(leaves_open(what), make(range(6)), limit=limit) == list(range(6))


@LIMITS
@SCOPES
async def test_so_it_has_in_a_stream_a_group_and_a_graph(what, limit, autojump_clock):
    work = leaves_open(what)
    async with fanout.stream(work, range(6), limit=limit_of(limit)) as results:
        assert [value async for _, _, value in results] == list(range(6))
    async with fanout.open_group(limit=limit_of(limit)) as group:
        handles = [group.start_soon(work, n) for n in range(6)]
    assert [handle.outcome for handle in handles] == [Value(n) for n in range(6)]

    def step(n):
        async def run(*needs):
            return await work(n)

        return run

    steps = {n: fanout.Step(step(n), needs=(n - 1,) if n else ()) for n in range(4)}
    assert await fanout.run_graph(steps, limit=limit_of(limit)) == {n: n for n in range(4)}


@SCOPES
async def test_every_item_may_leave_one_open(what, autojump_clock):
    async def work(n):
        await trio.sleep(n % 3)
        open_scope(what)
        return n

    with nothing_left():
        assert await fanout.map(work, range(50), limit=4) == list(range(50))
        assert await fanout.map(work, range(50), limit=4, item_timeout=10) == list(range(50))


@SCOPES
@pytest.mark.parametrize("policy", [fanout.Collect(), fanout.Settle()])
async def test_an_item_that_fails_with_a_scope_open_is_a_failure_like_others(policy, what, autojump_clock):
    async def work(n):
        if n == 0:
            open_scope(what)
            raise ValueError(n)
        await trio.sleep(3)
        return n

    if policy == fanout.Settle():
        outcomes = await fanout.map(work, range(3), limit=1, policy=policy)
        assert outcomes[1:] == [Value(1), Value(2)]
        assert isinstance(outcomes[0], Error)
        assert isinstance(outcomes[0].error, ValueError)
    else:
        with pytest.raises(fanout.FanOutError) as info:
            await fanout.map(work, range(3), limit=1, policy=policy)
        assert info.value.results == {1: 1, 2: 2}
        assert info.value.indices == (0,)


@pytest.mark.parametrize("seconds", [None, 100])
async def test_an_item_that_is_cancelled_by_the_scope_it_left_open_fails_and_says_so(seconds, autojump_clock):
    async def work(n):
        if n == 1:
            open_scope("deadline")
        await trio.sleep(3)
        return n

    with pytest.raises(fanout.FanOutError) as info:
        await fanout.map(work, range(4), limit=1, policy=fanout.Collect(), item_timeout=seconds)
    (failure,) = info.value.exceptions
    assert type(failure) is RuntimeError
    assert str(failure) == (
        "cancelled by a cancel scope that this item left open; loop over async generators in `aclosing`"
    )
    assert notes_of(failure) == ["item 1"]
    assert info.value.results == {0: 0, 2: 2, 3: 3}
    assert trio.current_time() == 3 + 1 + 3 + 3


async def test_so_it_ends_the_run_as_any_failure_does(autojump_clock):
    async def work(n):
        if n == 1:
            open_scope("deadline")
        await trio.sleep(100)

    with pytest.raises(RuntimeError, match="that this item left open"):
        await fanout.map(work, range(3))
    assert trio.current_time() == 1


async def test_of_a_group_with_such_a_cancellation_the_rest_is_the_failure(autojump_clock):
    error = ValueError()

    async def fail_when_cancelled():
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def work(n):
        if n == 0:
            open_scope("deadline")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled)
                nursery.start_soon(trio.sleep_forever)
        return n

    outcomes = await fanout.map(work, range(3), limit=1, policy=fanout.Settle())
    assert outcomes[1:] == [Value(1), Value(2)]
    assert isinstance(outcomes[0], Error)
    assert isinstance(outcomes[0].error, ExceptionGroup)
    assert outcomes[0].error.exceptions == (error,)


async def test_a_cancellation_from_outside_is_one_whatever_is_left_open(autojump_clock):
    async def work(n):
        open_scope("plain")
        await trio.sleep_forever()
        return n

    with nothing_left(), trio.move_on_after(1) as scope:
        await fanout.map(work, range(3))
    assert scope.cancelled_caught
    assert trio.current_time() == 1


async def test_a_shield_that_is_left_open_outlives_no_deadline(autojump_clock):
    async def work(n):
        if n == 0:
            open_scope("shield")
            return n
        await trio.sleep_forever()
        return n

    with trio.move_on_after(1) as scope:
        await fanout.map(work, range(3), limit=1)
    assert scope.cancelled_caught
    assert trio.current_time() == 1


@pytest.mark.parametrize("call", ["first success", "settle", "group", "stream"])
async def test_a_shield_that_a_cancelled_item_leaves_open_hides_no_outcome(call, autojump_clock):
    """In it, the task is no longer cancelled; but what it raises is the cancellation of the run."""

    async def work(n):
        if n == 0:
            await trio.sleep(1)
            return "won"
        try:
            await trio.sleep_forever()
        finally:
            open_scope("shield")

    with nothing_left():
        if call == "first success":
            assert await fanout.map(work, [0, 1], policy=fanout.FirstSuccess()) == "won"
        elif call == "settle":
            first, second = await fanout.map(work, [0, 1], policy=fanout.Settle(move_on_after=2))
            assert first.value == "won"
            assert isinstance(second.error, fanout.Unfinished)
        elif call == "group":
            async with fanout.open_group() as group:
                group.start_soon(work, 1)
                await trio.sleep(1)
                group.cancel_scope.cancel()
        else:
            async with fanout.stream(work, [0, 1]) as results:
                assert (await results.receive()).value == "won"


async def test_a_failure_in_a_shield_that_a_cancelled_item_leaves_open_is_a_secondary_one(autojump_clock):
    async def work(n):
        if n:
            await trio.sleep(1)
            raise KeyError("first")
        try:
            await trio.sleep_forever()
        except trio.Cancelled as exc:
            open_scope("shield")
            raise ValueError("second") from exc

    with nothing_left(), pytest.raises(KeyError, match="first"):
        await fanout.map(work, [0, 1])


async def test_an_item_with_a_time_limit_may_leave_a_scope_open_and_is_timed_out_in_it(autojump_clock):
    async def work(n):
        open_scope("plain")
        await trio.sleep(n)
        return n

    outcomes = await fanout.map(work, [1, 5, 2], limit=1, item_timeout=3, policy=fanout.Settle())
    assert [type(outcome) for outcome in outcomes] == [Value, Error, Value]
    assert isinstance(outcomes[1], Error)
    assert isinstance(outcomes[1].error, trio.TooSlowError)
    assert str(outcomes[1].error) == "took longer than item_timeout=3"
    assert trio.current_time() == 1 + 3 + 2


async def test_an_item_with_a_time_limit_that_fails_in_a_scope_that_it_left_open(autojump_clock):
    error = ValueError()

    async def work(n):
        open_scope("plain")
        raise error

    with pytest.raises(ValueError) as info:  # noqa: PT011  # it is this object
        await fanout.map(work, [1], item_timeout=3)
    assert info.value is error


async def test_what_sets_the_scope_right_again_costs_no_worker(autojump_clock):
    tasks = set()

    async def work(n):
        tasks.add(trio.lowlevel.current_task())
        async with aclosing(rows(1)) as source:
            async for row in source:
                return row
        raise AssertionError

    assert await fanout.map(work, range(4), limit=1) == [0] * 4
    assert len(tasks) == 1


# Nurseries


async def leave_nursery_open(n):
    if n == 1:
        manager = trio.open_nursery()
        nursery = await manager.__aenter__()
        nursery.start_soon(trio.sleep_forever)
    await trio.sleep(1)
    return n


@GROUP_POLICIES
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_nursery_left_open_ends_the_run_and_names_the_item(limit, policy, autojump_clock):
    with nothing_left(), pytest.raises(RuntimeError, match=r"^item 1 left a nursery open"):
        await fanout.map(leave_nursery_open, range(4), limit=limit, policy=policy)


@GROUP_POLICIES
async def test_so_it_does_in_other_calls(policy, autojump_clock):
    with nothing_left(), pytest.raises(RuntimeError, match=r"^item 1 left a nursery open"):
        async with fanout.stream(leave_nursery_open, range(4), policy=policy) as results:
            async for _ in results:
                pass
    with nothing_left(), pytest.raises(RuntimeError, match=r"^job 1 left a nursery open"):
        async with fanout.open_group(policy=policy) as group:
            for n in range(4):
                group.start_soon(leave_nursery_open, n)

    async def step():
        await leave_nursery_open(1)

    with nothing_left(), pytest.raises(RuntimeError, match=r"^step 'a' left a nursery open"):
        await fanout.run_graph({"a": fanout.Step(step), "b": fanout.Step(step, needs=("a",))}, policy=policy)


@pytest.mark.parametrize("how", ["fails", "is cancelled", "interrupt"])
async def test_a_nursery_left_open_by_an_item_that_does_not_return(how, autojump_clock):
    async def work(n):
        nursery = await trio.open_nursery().__aenter__()
        nursery.start_soon(trio.sleep_forever)
        if how == "fails":
            raise ValueError
        if how == "interrupt":
            raise KeyboardInterrupt
        await trio.sleep_forever()

    expected = KeyboardInterrupt if how == "interrupt" else RuntimeError
    with nothing_left(), pytest.raises(expected) as info, trio.move_on_after(1):
        await fanout.map(work, [0])
    if expected is RuntimeError:
        assert str(info.value).startswith("item 0 left a nursery open")


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_tasks_of_a_nursery_left_open_are_waited_for(cancelled, autojump_clock):
    ended = []

    async def slow():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            ended.append(trio.current_time())

    async def work(n):
        (await trio.open_nursery().__aenter__()).start_soon(slow)
        await trio.sleep(1)

    with trio.move_on_after(3 if cancelled else math.inf), pytest.raises(RuntimeError, match="item 0"):
        await fanout.map(work, [0])
    assert ended == [6]
    assert trio.current_time() < 6.002


async def test_the_tasks_of_a_nursery_left_open_under_a_shield_are_cancelled(autojump_clock):
    reasons = []

    async def task():
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            raise

    async def work(n):
        if n == 0:
            open_scope("shield")
            (await trio.open_nursery().__aenter__()).start_soon(task)
            await trio.sleep(1)
        else:
            await task()

    with pytest.raises(RuntimeError, match="item 0"):
        await fanout.map(work, range(2))
    assert sorted(reasons) == ["an item left a nursery open", "its block was left without closing it"]


async def test_where_trio_does_not_show_its_scopes_nothing_is_noticed(autojump_clock, monkeypatch):
    monkeypatch.setattr("trio_fanout._core.scopes._SHOWN", False)

    async def work(n):
        await trio.sleep(1)
        return n

    assert await fanout.map(work, range(4), limit=2, item_timeout=3) == [0, 1, 2, 3]

    async def fail(n):
        try:
            await trio.sleep(2 - n)
        except trio.Cancelled as exc:
            raise ValueError("second") from exc
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        await fanout.map(fail, [0, 1])


# Nurseries in async generators, which Trio closes when they are collected


async def rows_with_a_nursery(ended, seconds=0):
    async def task():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)
            ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await wait_all_tasks_blocked()
        for row in range(3):
            yield row


@pytest.mark.parametrize(
    ("autojump_threshold", "seconds"),
    [(0, 0), (0, 1), (float("inf"), 0)],
    ids=["jumping", "jumping, slow to end", "standing still"],
)
@pytest.mark.parametrize("seed", range(6))
def test_an_async_generator_with_a_nursery_that_an_item_leaves_does_not_hang_the_program(
    seed, autojump_threshold, seconds, monkeypatch
):
    """Trio's finalizer closes the generator in a task of its own, before or after the tasks of the nursery end."""
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr("trio._core._run._r", random.Random(seed))
    ended = []

    async def work(n):
        async for _ in rows_with_a_nursery(ended, seconds):
            return

    async def main():
        with pytest.raises(RuntimeError, match="item 0 left a nursery open"):
            await fanout.map(work, [0])
        return list(ended)

    clock = MockClock(autojump_threshold=autojump_threshold)
    assert trio.run(main, clock=clock) == [seconds]  # no task is left when the call returns


def test_a_nursery_that_an_item_leaves_open_does_not_hang_a_program_on_the_real_clock():
    ended = []

    async def work(n):
        async for _ in rows_with_a_nursery(ended, 0.01):
            return

    async def main():
        with pytest.raises(RuntimeError, match="left a nursery open"):
            await fanout.map(work, range(3))

    trio.run(main)
    assert ended


def test_ctrl_c_waits_for_the_tasks_of_a_nursery_that_was_left_open():
    """As in a nursery of Trio's. And what the run has to say is printed with it."""
    ended = []

    @trio.lowlevel.enable_ki_protection  # so that the main task gets it, which waits
    async def stubborn():
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(1)
        ended.append(trio.current_time())

    async def work(n):
        (await trio.open_nursery().__aenter__()).start_soon(stubborn)

    async def main():
        with pytest.raises(KeyboardInterrupt) as raised:
            await fanout.map(work, [0])
        assert ended == [2]
        return printed(raised.value)

    text = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert "item 0 left a nursery open" in text
    assert "stack corrupted" not in text


# No call gives back less than it took


@pytest.mark.parametrize("limit", [1, 3])
@POLICIES
async def test_an_item_that_cancels_the_nursery_of_its_worker_is_an_error(policy, limit, autojump_clock):
    async def work(n):
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await trio.sleep(1)
        return n

    with nothing_left(), pytest.raises(RuntimeError, match="cancelled from inside"):
        await fanout.map(work, iter(range(100)), limit=limit, policy=policy)


async def test_so_is_it_where_items_never_wait_and_others_are_left():
    async def work(n):
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        busy(0.01)
        return n

    with pytest.raises(RuntimeError, match="cancelled from inside"):
        await fanout.map(work, iter(range(100)))


async def test_so_is_it_in_do_and_in_a_stream_and_in_a_graph(autojump_clock):
    async def work(n=0):
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await trio.sleep(1)
        return n

    with pytest.raises(RuntimeError, match="cancelled from inside"):
        await fanout.do(work, range(3))
    async with fanout.stream(work, range(3)) as results:
        with pytest.raises(RuntimeError, match="cancelled from inside"):
            await results.receive()
    with pytest.raises(RuntimeError, match="cancelled from inside"):
        await fanout.run_graph({"a": fanout.Step(work)})


async def test_a_cancellation_that_is_shielded_away_before_the_end_is_an_error(autojump_clock):
    async def work(n):
        try:
            await trio.sleep_forever()
        finally:
            if n == 2:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
                inner.shield = True
        return n

    with trio.CancelScope() as outer, trio.CancelScope() as inner:
        outer.deadline = 1
        with pytest.raises(RuntimeError, match="shielded away"):
            await fanout.map(work, range(3))


async def test_a_cancellation_from_inside_is_an_error_also_where_all_items_are_taken(autojump_clock):
    """No list is ever short."""

    async def cancel_late(n):
        if n == 0:
            await trio.sleep(1)
            trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
            await trio.sleep(1)
        return n

    with pytest.raises(RuntimeError, match=r"^items were cancelled from inside of this call"):
        await fanout.map(cancel_late, range(3), limit=2)
