"""`stream`: what is handed over, in which order, `stop`, closing, and wrong use."""

import contextvars
import itertools
import math

import outcome
import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    DO_POLICIES,
    FUNCTIONS,
    GROUP_POLICIES,
    AsyncCountingSource,
    CountingSource,
    Gauge,
    aiter_of,
    busy,
    double,
    double_at_once,
    limit_of,
    nothing_left,
    rest_of,
    task_names,
)


async def sleep_and_return(seconds):
    await trio.sleep(seconds)
    return seconds


# What is handed over


@FUNCTIONS
@pytest.mark.parametrize("limit", [1, 3, 40])
@pytest.mark.parametrize("buffer", [None, 0, 2, math.inf])
async def test_results_come_with_index_and_item_in_input_order(buffer, limit, shared, fn, make):
    limiter = limit_of(limit, shared)
    with nothing_left():
        async with fanout.stream(fn, make("abcdefghij"), limit=limiter, buffer=buffer) as results:
            assert await rest_of(results) == [(i, x, x * 2) for i, x in enumerate("abcdefghij")]


@FUNCTIONS
async def test_unordered_results_are_all_there(fn, make):
    async with fanout.stream(fn, make(range(100)), limit=3, ordered=False) as results:
        assert sorted(await rest_of(results)) == [(i, i, 2 * i) for i in range(100)]


async def test_a_result_is_a_completed_tuple():
    async with fanout.stream(double, ["x"]) as results:
        completed = await results.receive()
    assert isinstance(completed, fanout.Completed)
    assert (completed.index, completed.item, completed.value) == (0, "x", "xx")


@pytest.mark.parametrize(
    ("ordered", "expected"),
    [(True, [(3, 3), (3, 1), (3, 2), (4, 4)]), (False, [(1, 1), (2, 2), (3, 3), (4, 4)])],
)
async def test_results_are_handed_over_as_soon_as_they_are_available(ordered, expected, autojump_clock):
    async with fanout.stream(sleep_and_return, [3, 1, 2, 4], ordered=ordered) as results:
        assert [(trio.current_time(), value) async for _, _, value in results] == expected


async def test_no_items_end_the_iteration_at_once(ordered, make):
    async with fanout.stream(double, make([]), ordered=ordered) as results:
        with pytest.raises(trio.EndOfChannel):
            await results.receive()
        with pytest.raises(trio.EndOfChannel):
            await results.receive()


async def test_no_items_end_the_iteration_on_a_limiter_without_tokens():
    async with fanout.stream(double, [], limit=trio.CapacityLimiter(0)) as results:
        assert await rest_of(results) == []


async def test_settle_hands_over_outcomes(make):
    error = ValueError("odd")

    async def fn(x):
        await trio.lowlevel.checkpoint()
        if x % 2:
            raise error
        return x

    async with fanout.stream(fn, make(range(4)), limit=2, policy=fanout.Settle()) as results:
        got = await rest_of(results)
    assert [completed[:2] for completed in got] == [(i, i) for i in range(4)]
    assert got[0].value == outcome.Value(0)
    assert got[2].value == outcome.Value(2)
    assert [completed.value.error for completed in got[1::2]] == [error, error]


async def test_item_timeout_applies_to_each_item(autojump_clock):
    async with fanout.stream(sleep_and_return, [1, 9, 2], limit=1, item_timeout=5, policy=fanout.Settle()) as results:
        values = [value async for _, _, value in results]
    assert values[0] == outcome.Value(1)
    assert isinstance(values[1].error, trio.TooSlowError)
    assert values[2] == outcome.Value(2)
    assert trio.current_time() == 8


async def test_every_receive_is_a_checkpoint():
    async with fanout.stream(double_at_once, range(3)) as results:
        with assert_checkpoints():
            await results.receive()
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await results.receive()
        assert scope.cancelled_caught
        assert [value async for _, _, value in results] == [2, 4]
        with assert_checkpoints(), pytest.raises(trio.EndOfChannel):
            await results.receive()


async def test_a_reader_who_always_finds_results_lets_other_tasks_in():
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        async with fanout.stream(double_at_once, range(20_000), limit=20_000) as results:
            while results.statistics().ready < 20_000:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(other)
            async for _ in results:
                pass
        nursery.cancel_scope.cancel()
    assert turns >= 1


async def test_tasks_carry_a_name_that_says_what_they_run(ordered):
    async with fanout.stream(sleep_and_return, [math.inf] * 2, ordered=ordered) as results:
        await wait_all_tasks_blocked()
        names = task_names()
        assert names.count("stream(sleep_and_return)") == 2
        assert sum(name.startswith("stream(sleep_and_return)") for name in names) == 3
        await results.aclose()


async def test_no_more_workers_than_items():
    async with fanout.stream(sleep_and_return, [math.inf] * 3, limit=10_000):
        await wait_all_tasks_blocked()
        assert task_names().count("stream(sleep_and_return)") == 3


async def test_items_see_the_context_of_the_caller_not_of_the_reader(make):
    """A worker that the reader sets off must not run in the context of the reader."""
    var = contextvars.ContextVar("var", default="nothing")
    seen = []

    async def fn(x):
        seen.append(var.get())
        var.set(f"item {x}")
        await trio.lowlevel.checkpoint()

    async def read():
        var.set("reader")
        async for _ in results:
            await wait_all_tasks_blocked()

    var.set("caller")
    async with (
        fanout.stream(fn, make(range(6)), limit=2, buffer=0) as results,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read)
    assert seen == ["caller"] * 6
    assert var.get() == "caller"


async def test_a_source_that_is_both_is_used_as_an_async_one():
    class Both:
        def __iter__(self):
            raise AssertionError

        def __aiter__(self):
            return aiter_of(range(3))

    async with fanout.stream(double, Both()) as results:
        assert [value async for _, _, value in results] == [0, 2, 4]


async def test_the_context_manager_starts_nothing_before_it_is_entered():
    source = CountingSource(range(3))
    with nothing_left():
        manager = fanout.stream(double, source)
        await wait_all_tasks_blocked()
    assert source.taken == 0
    async with manager as results:
        assert len(await rest_of(results)) == 3


# A receive channel


async def test_results_are_a_receive_channel_that_anyone_may_read(autojump_clock):
    got = []

    async def read(channel):
        async with channel:
            async for index, _, value in channel:
                got.append((index, value))

    async with (
        fanout.stream(sleep_and_return, [3, 1, 2]) as results,
        trio.open_nursery() as nursery,
    ):
        assert isinstance(results, fanout.ResultChannel)
        assert isinstance(results, trio.abc.ReceiveChannel)
        nursery.start_soon(read, results)
    assert got == [(0, 3), (1, 1), (2, 2)]
    with pytest.raises(trio.ClosedResourceError):
        await results.receive()


async def test_two_tasks_may_take_turns(autojump_clock):
    async with fanout.stream(sleep_and_return, [1, 2, 3]) as results:
        with trio.move_on_after(0.5):
            await results.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(results.receive)
        assert (await results.receive()).index == 1


async def test_two_tasks_that_read_at_once_are_told_so(autojump_clock):
    got = []

    async def read():
        got.append(await results.receive())

    async with fanout.stream(sleep_and_return, [1, 2]) as results:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match=r"^another task"):
                await results.receive()
        assert [completed.index for completed in got] == [0]
        assert (await results.receive()).index == 1


async def test_two_tasks_that_read_at_once_are_told_so_where_results_are_there(autojump_clock):
    """A receive that lets other tasks in first is still one."""
    async with fanout.stream(sleep_and_return, [0, 0]) as results:
        await trio.sleep(1)
        refused = 0

        async def read():
            nonlocal refused
            busy(0.01)  # it is time to let other tasks run
            try:
                await results.receive()
            except trio.BusyResourceError:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(read)
        assert refused == 1
        assert (await results.receive()).index == 1


async def test_reading_after_the_block_raises():
    async with fanout.stream(double, range(3)) as results:
        await results.receive()
    with pytest.raises(trio.ClosedResourceError):
        await results.receive()
    with pytest.raises(trio.ClosedResourceError):
        await rest_of(results)


async def test_aclose_cancels_what_is_in_flight(make):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(math.inf if x else 0)

    with nothing_left():
        async with fanout.stream(fn, make(range(9)), limit=2) as results:
            await results.receive()
            await wait_all_tasks_blocked()
            assert gauge.now == 2
            with assert_checkpoints():
                await results.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await results.receive()
            await wait_all_tasks_blocked()
            assert gauge.now == 0
            await results.aclose()
            results.stop()


async def test_aclose_wakes_the_task_that_reads(autojump_clock):
    """Without waiting for items that are shielded."""

    async def item(_):
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    async def read():
        with pytest.raises(trio.ClosedResourceError):
            await results.receive()
        assert trio.current_time() == 0

    async with fanout.stream(item, [1]) as results, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await results.aclose()


async def test_leaving_the_block_wakes_a_task_that_reads_outside():
    async def read():
        with pytest.raises(trio.ClosedResourceError):
            await results.receive()

    async with trio.open_nursery() as nursery, fanout.stream(trio.sleep, [math.inf]) as results:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()


async def test_a_cancelled_receive_loses_no_result(autojump_clock):
    """At any moment it may be cancelled: also when the result has come in the same turn."""
    got = []
    async with fanout.stream(sleep_and_return, [1, 2, 3, 4], limit=1) as results:
        while len(got) < 4:
            with trio.move_on_after(0.25):
                got.append(await results.receive())
        with pytest.raises(trio.EndOfChannel):
            await results.receive()
    assert [completed.index for completed in got] == [0, 1, 2, 3]


async def test_a_receive_cancelled_as_the_result_comes_loses_nothing():
    event = trio.Event()

    async def fn(x):
        await event.wait()
        return x

    async def read():
        with scope:
            got.append(await results.receive())

    for order in (0, 1):
        got = []
        event = trio.Event()
        scope = trio.CancelScope()
        async with fanout.stream(fn, range(2), limit=1, buffer=1) as results:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
                if order:
                    event.set()
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
                else:
                    scope.cancel()
                    event.set()
            got.extend(await rest_of(results))
        assert [completed.index for completed in got] == [0, 1]


# stop


async def test_stop_lets_those_in_flight_finish_and_hands_them_over(shared, ordered, make, autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(3 - x % 3)
            return x

    with nothing_left():
        async with fanout.stream(fn, make(range(100)), limit=limit_of(3, shared), ordered=ordered) as results:
            await trio.sleep(0.5)
            results.stop()
            got = [index async for index, _, _ in results]
    assert got == ([0, 1, 2] if ordered else [2, 1, 0])
    assert sorted(gauge.began) == [0, 1, 2]
    assert trio.current_time() == 3


async def test_stop_before_the_first_item_starts_nothing(shared, make):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.lowlevel.checkpoint()

    with nothing_left():
        async with fanout.stream(fn, make(range(9)), limit=limit_of(3, shared)) as results:
            results.stop()
            assert await rest_of(results) == []
    assert gauge.began == []


@pytest.mark.parametrize("times", [1, 2])
async def test_stop_while_the_async_source_waits(times):
    left = []

    async def source():
        yield 1
        try:
            await trio.sleep_forever()
        finally:
            left.append("source")

    with nothing_left():
        async with fanout.stream(double, source()) as results:
            assert await results.receive() == (0, 1, 2)
            await wait_all_tasks_blocked()
            for _ in range(times):
                results.stop()
            assert await rest_of(results) == []
            assert left == ["source"]


async def test_stop_closes_an_async_source_at_once_though_items_run_on(autojump_clock):
    closed = []

    async def source():
        try:
            while True:
                yield 5
        finally:
            closed.append(trio.current_time())

    async with fanout.stream(sleep_and_return, source(), limit=1) as results:
        await trio.sleep(1)  # the reader waits until the worker is free
        results.stop()
        assert await rest_of(results) == [(0, 5, 5)]
    assert closed == [1]
    assert trio.current_time() == 5


async def test_stop_while_the_reader_waits_and_the_source_too():
    async with (
        fanout.stream(double, trio.testing.memory_stream_pair()[0]) as results,
        trio.open_nursery() as nursery,
    ):

        async def read():
            assert await rest_of(results) == []

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        results.stop()


async def test_stop_while_the_window_is_full_hands_over_what_is_in_it(make):
    with nothing_left():
        async with fanout.stream(double, make(range(100)), limit=2, buffer=3) as results:
            await wait_all_tasks_blocked()
            results.stop()
            await wait_all_tasks_blocked()
            results.stop()
            assert [index async for index, _, _ in results] == [0, 1, 2, 3, 4]
            results.stop()
            assert await rest_of(results) == []
    results.stop()


async def test_stop_while_workers_wait_for_a_token_held_by_others(make):
    """The items that wait are not started, and no task waits for the tokens."""
    limiter = trio.CapacityLimiter(3)
    gauge = Gauge()
    event = trio.Event()

    async def fn(x):
        with gauge.running(x):
            await event.wait()
        return x

    async def hold(task_status):
        async with limiter:
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            await nursery.start(hold)
        async with fanout.stream(fn, make(range(9)), limit=limiter) as results:
            await wait_all_tasks_blocked()
            assert gauge.now == 1
            assert limiter.statistics().tasks_waiting == 2
            results.stop()
            await wait_all_tasks_blocked()
            assert limiter.statistics().tasks_waiting == 0
            event.set()
            assert [index async for index, _, _ in results] == [0]
        assert limiter.borrowed_tokens == 2
        nursery.cancel_scope.cancel()
    assert gauge.began == [0]


async def test_stop_when_no_token_was_ever_there():
    limiter = trio.CapacityLimiter(0)
    async with fanout.stream(double, range(9), limit=limiter) as results:
        await wait_all_tasks_blocked()
        results.stop()
        assert await rest_of(results) == []
    assert limiter.statistics().tasks_waiting == 0


async def test_stop_as_a_token_is_given_back_starts_nothing_and_keeps_no_token():
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("other")
    gauge = Gauge()

    async def fn(x):
        gauge.began.append(x)

    async with fanout.stream(fn, range(9), limit=limiter) as results:
        await wait_all_tasks_blocked()
        limiter.release_on_behalf_of("other")  # the worker has it now, but has not run yet
        results.stop()
        assert await rest_of(results) == []
    assert gauge.began == []
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("tokens", [None, 1, 2])
async def test_stop_from_a_plain_source_starts_nothing_more(tokens):
    """Not the item that the source then gives, nor is a token waited for."""
    began = []

    async def fn(x):
        began.append(x)
        await trio.lowlevel.checkpoint()
        return x

    def source():
        yield 0
        results.stop()
        yield 1

    limiter = None if tokens is None else trio.CapacityLimiter(tokens)
    async with fanout.stream(fn, source(), limit=limiter or 2) as results:
        assert [index async for index, _, _ in results] == [0]
    assert began == [0]


async def test_stop_from_an_item(make):
    async def fn(x):
        await trio.lowlevel.checkpoint()
        if x == 4:
            results.stop()
        return x

    async with fanout.stream(fn, make(range(100)), limit=1) as results:
        assert [index async for index, _, _ in results] == [0, 1, 2, 3, 4]


@DO_POLICIES
async def test_a_failure_after_stop_is_raised_all_the_same(policy, autojump_clock):
    async def fn(x):
        await trio.sleep(1 + x)
        if x == 1:
            raise ValueError
        return x

    async with fanout.stream(fn, range(9), limit=2, policy=policy) as results:
        await trio.sleep(0.5)
        results.stop()
        assert (await results.receive()).index == 0
        with pytest.raises((ValueError, fanout.FanOutError)):
            await results.receive()


@pytest.mark.parametrize("close", [False, True], ids=["stop", "aclose"])
async def test_stop_and_aclose_close_an_async_generator_and_leave_other_sources_open(close):
    closed = []

    async def generator():
        task = trio.lowlevel.current_task()
        try:
            while True:
                yield 1
        finally:
            closed.append(trio.lowlevel.current_task() is task)

    async with fanout.stream(double, generator(), limit=1) as results:
        await results.receive()
        await wait_all_tasks_blocked()
        if close:
            await results.aclose()
        else:
            results.stop()
            await rest_of(results)
    assert closed == [True]

    send, receive = trio.open_memory_channel[int](9)
    for x in range(5):
        send.send_nowait(x)
    async with fanout.stream(double, receive, limit=1, buffer=0) as results:
        assert await results.receive() == (0, 0, 0)
        if close:
            await results.aclose()
        else:
            results.stop()
            await rest_of(results)
    taken = 5 - receive.statistics().current_buffer_used
    assert taken <= 2
    assert receive.receive_nowait() == taken


async def test_stopping_twice_leaves_the_clean_up_of_the_source_alone(autojump_clock):
    cleaned = []

    async def source():
        try:
            while True:
                yield 1
        finally:
            await trio.sleep(1)
            cleaned.append(trio.current_time())

    async with fanout.stream(double, source(), limit=1, buffer=0) as results:
        await wait_all_tasks_blocked()
        results.stop()
        await trio.sleep(0.5)
        results.stop()
        assert len(await rest_of(results)) == 1
    assert cleaned == [1]


async def test_stop_just_after_a_result_leaves_the_clean_up_of_the_source_alone(autojump_clock):
    """That result has made room, and the source would be read: this must not cancel its clean-up."""
    cleaned = []

    async def source():
        try:
            while True:
                yield 1
        finally:
            await trio.sleep(1)
            cleaned.append(trio.current_time())

    async with fanout.stream(double, source(), limit=1, buffer=0) as results:
        await wait_all_tasks_blocked()
        await results.receive()
        results.stop()
        assert await rest_of(results) == []
    assert cleaned == [1]


async def test_a_source_may_hold_a_scope_open_while_it_waits_for_the_reader(autojump_clock):
    """Its deadline passes while the reader is slow; it is the source that learns of this, when it is read again."""

    async def source():
        with trio.move_on_after(5):
            for x in itertools.count():
                yield x
                await trio.lowlevel.checkpoint()
        yield -1

    with nothing_left():
        async with fanout.stream(double, source(), limit=1, buffer=0) as results:
            values = []
            async for _, item, _ in results:
                values.append(item)
                await trio.sleep(2)
    assert values == [0, 1, 2, 3, -1]


async def test_stop_loses_no_item_of_a_channel_that_waits(autojump_clock):
    """The item that a waiting source did not give is still in there."""
    send, receive = trio.open_memory_channel[int](0)
    async with fanout.stream(double, receive) as results:
        await wait_all_tasks_blocked()
        results.stop()
        assert await rest_of(results) == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, 5)
        assert await receive.receive() == 5


# Leaving early


@FUNCTIONS
async def test_break_cancels_what_is_in_flight(fn, shared, make):
    limiter = limit_of(3, shared)
    with nothing_left():
        async with fanout.stream(fn, make(range(1000)), limit=limiter) as results:
            async for index, _, _ in results:
                if index == 10:
                    break


async def test_leaving_at_once_starts_nothing():
    gauge = Gauge()

    async def fn(x):
        gauge.began.append(x)

    for make in (list, aiter_of):
        with nothing_left():
            async with fanout.stream(fn, make(range(9))):
                pass
    assert gauge.began == []


async def test_leaving_waits_for_the_items(autojump_clock):
    async def fn(x):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(x)

    with nothing_left():
        async with fanout.stream(fn, [2, 3]):
            await trio.sleep(1)
    assert trio.current_time() == 4


async def test_leaving_by_return_gives_the_value_back():
    async def first(items):
        async with fanout.stream(double, items) as results:
            async for _, _, value in results:
                return value
        raise AssertionError

    with nothing_left():
        assert await first(iter(int, 1)) == 0


# Wrong use


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"fn": None}, TypeError, r"fn must be an async function, got None"),
        ({"items": 5}, TypeError, r"items must be .* got 5"),
        ({"limit": 0}, ValueError, r"limit must be .* got 0"),
        ({"limit": True}, TypeError, r"limit must be .* got True"),
        ({"limit": 2.5}, TypeError, r"limit must be .* got 2.5"),
        ({"policy": fanout.FailFast}, TypeError, r"policy of stream must be .* got the class FailFast"),
        ({"policy": fanout.FirstSuccess()}, TypeError, r"policy of stream must be .* got a FirstSuccess"),
        ({"policy": fanout.Settle(move_on_after=3)}, TypeError, r"policy of stream .* move_on_after=3"),
        ({"item_timeout": 0}, ValueError, r"item_timeout must be .* got 0"),
        ({"item_timeout": math.nan}, ValueError, r"item_timeout must be .* got nan"),
        ({"ordered": "no"}, TypeError, r"^ordered must be True or False, got a str$"),
        ({"buffer": True}, TypeError, r"buffer must be .* got True"),
        ({"buffer": -1}, ValueError, r"buffer must be .* got -1"),
        ({"buffer": 2.5}, TypeError, r"buffer must be .* got 2.5"),
        ({"buffer": math.nan}, TypeError, r"buffer must be .* got nan"),
        ({"buffer": -math.inf}, (TypeError, ValueError), r"buffer must be .* got -inf"),
        ({"buffer": "3"}, TypeError, r"buffer must be .* got a str"),
    ],
)
def test_wrong_arguments_raise_at_once(change, error, match):
    arguments = {"fn": double, "items": [1, 2], **change}
    with pytest.raises(error, match=match):
        fanout.stream(arguments.pop("fn"), arguments.pop("items"), **arguments)


def test_wrong_buffer_is_told_all_that_it_may_be():
    with pytest.raises(TypeError) as excinfo:
        fanout.stream(double, [], buffer="3")
    assert "math.inf" in str(excinfo.value)
    assert "None" in str(excinfo.value)


def test_a_coroutine_in_place_of_the_function_is_named():
    with pytest.raises(TypeError, match="without calling it"):
        fanout.stream(double(1), [1])


@GROUP_POLICIES
async def test_a_function_that_is_not_async_is_told_so_under_every_policy(make, policy):
    with nothing_left(), pytest.raises(TypeError, match="in_thread") as excinfo:
        async with fanout.stream(lambda x: x, make([1, 2]), policy=policy) as results:
            await rest_of(results)
    assert type(excinfo.value) is TypeError


async def test_a_limiter_that_the_caller_holds_is_refused():
    limiter = trio.CapacityLimiter(5)
    source = AsyncCountingSource(range(3))
    async with limiter:
        with nothing_left(), pytest.raises(RuntimeError, match="deadlock"):
            async with fanout.stream(double, source, limit=limiter):
                pass
    assert source.taken == 0


async def test_a_stream_within_an_item_on_the_same_limiter_is_refused():
    limiter = trio.CapacityLimiter(5)

    async def fn(x):
        async with fanout.stream(double, [1], limit=limiter) as inner:
            await rest_of(inner)

    with pytest.raises(RuntimeError, match="deadlock"):
        async with fanout.stream(fn, [1], limit=limiter) as results:
            await rest_of(results)
    assert limiter.borrowed_tokens == 0
