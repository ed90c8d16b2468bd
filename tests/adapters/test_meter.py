"""`Meter`: what it counts, what runs, and what it tells of a call that has ended."""

import asyncio
import functools
import gc
import inspect
import itertools
import signal
import sys
import threading
import types
import weakref
from operator import attrgetter

import attrs
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import ALL_POLICIES, deeper, deepest, double, no_cycles, nothing_left
from trio_fanout import Ended, Meter, MeterStatistics, Running


def counts(meter):
    """(succeeded, failed, cancelled) of a meter whose calls have all ended."""
    now = meter.statistics()
    assert now.started == now.succeeded + now.failed + now.cancelled
    assert (now.running, meter.running()) == (0, [])
    return now.succeeded, now.failed, now.cancelled


async def fail(exc):
    await trio.lowlevel.checkpoint()
    raise exc


async def fail_at_once(exc):
    raise exc


def fail_when_called(exc):
    raise exc


FAILS = pytest.mark.parametrize("fails", [fail, fail_at_once, fail_when_called])


# Counting


def test_new_meter_has_seen_nothing():
    meter = Meter()
    assert meter.statistics() == MeterStatistics(0, 0, 0, 0, 0, 0)
    assert meter.running() == []


def test_statistics_are_immutable_and_have_names():
    names = ["started", "succeeded", "failed", "cancelled", "running", "peak_running"]
    statistics = Meter().statistics()
    assert list(attrs.asdict(statistics)) == names
    for name in names:
        with pytest.raises(AttributeError):
            setattr(statistics, name, 3)


async def test_statistics_follow_calls(autojump_clock):
    meter = Meter()
    async with trio.open_nursery() as nursery:
        for seconds in (1, 2, 3):
            nursery.start_soon(meter.wrap(trio.sleep), seconds)
        await trio.sleep(0.5)
        assert meter.statistics() == MeterStatistics(3, 0, 0, 0, running=3, peak_running=3)
        await trio.sleep(1)
        assert meter.statistics() == MeterStatistics(3, 1, 0, 0, running=2, peak_running=3)
        nursery.start_soon(meter.wrap(trio.sleep), 3)
        await trio.sleep(1)
        assert meter.statistics() == MeterStatistics(4, 2, 0, 0, running=2, peak_running=3)
    assert meter.statistics() == MeterStatistics(4, 4, 0, 0, running=0, peak_running=3)


@FAILS
@pytest.mark.parametrize(
    "exc",
    [ValueError("bad"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), ExceptionGroup("g", [ValueError()])],
    ids=repr,
)
async def test_whatever_is_no_cancellation_has_failed(exc, fails):
    ends = []
    meter = Meter(on_end=ends.append)
    with pytest.raises(type(exc)) as caught:
        await meter.wrap(fails)(exc)
    assert caught.value is exc
    assert counts(meter) == (0, 1, 0)
    assert [end.error for end in ends] == [exc]


async def test_error_passes_unchanged():
    """With its context, without a note, and with a frame for each function."""
    cause, context = KeyError("cause"), OSError("context")

    async def fn():
        try:
            raise context
        except OSError:
            raise ValueError("own") from cause

    with pytest.raises(ValueError, match="own") as caught:
        await Meter(on_end=lambda _: None).wrap(fn)()
    assert (caught.value.__cause__, caught.value.__context__) == (cause, context)
    assert not hasattr(caught.value, "__notes__")
    assert [entry.name for entry in caught.traceback[1:]] == ["call", "fn"]


async def test_cancelled_call_is_not_failed(autojump_clock):
    ends = []
    meter = Meter(on_end=ends.append)
    with trio.move_on_after(2) as scope:
        await meter.wrap(trio.sleep)(5)
    assert scope.cancelled_caught
    assert counts(meter) == (0, 0, 1)
    (end,) = ends
    assert isinstance(end.error, trio.Cancelled)
    assert end.ended == end.started + 2


async def fail_when_cancelled(exc):
    try:
        await trio.sleep_forever()
    finally:
        if exc:
            raise exc


@pytest.mark.parametrize(
    ("excs", "expected"), [([None, None], (0, 0, 1)), ([None, ValueError()], (0, 1, 0)), ([ValueError()], (0, 1, 0))]
)
async def test_group_is_a_cancellation_only_if_it_holds_nothing_else(excs, expected, autojump_clock):
    errors = []

    async def fn():
        try:
            async with trio.open_nursery() as nursery:
                for exc in excs:
                    nursery.start_soon(fail_when_cancelled, exc)
        except BaseExceptionGroup as group:
            errors.append(group)
            raise

    ends = []
    meter = Meter(on_end=ends.append)
    with trio.CancelScope(deadline=1):
        try:
            await meter.wrap(fn)()
        except* ValueError:
            pass
    assert counts(meter) == expected
    assert [end.error for end in ends] == errors


async def test_call_that_succeeds_under_cancellation_has_succeeded():
    meter = Meter()
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await meter.wrap(fail_not)() == 3
    assert counts(meter) == (1, 0, 0)


async def fail_not():
    return 3


async def test_error_that_came_out_of_a_cancellation_has_failed(autojump_clock):
    meter = Meter()
    with pytest.raises(ValueError, match="late"), trio.move_on_after(1):
        await meter.wrap(fail_when_cancelled)(ValueError("late"))
    assert counts(meter) == (0, 1, 0)


async def test_function_that_returns_nothing_to_await_is_wrong_use():
    ends = []
    meter = Meter(on_end=ends.append)
    for policy in ALL_POLICIES:
        with pytest.raises(TypeError, match=r"calling it returned 3.*in_thread"):
            await fanout.map(meter.wrap(len), ["abc"], policy=policy)
    with pytest.raises(TypeError, match="in_thread"):
        await meter.wrap(len)("abc")
    assert counts(meter) == (0, 5, 0)
    assert all(isinstance(end.error, TypeError) for end in ends)


class Later:
    """Something to await that is no coroutine."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield from double(3).__await__()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@types.coroutine
def generator_based(value):
    yield from double(value).__await__()
    return value


async def test_whatever_can_be_awaited_will_do():
    meter = Meter()
    assert await meter.wrap(Later)(3) == 3
    assert await meter.wrap(generator_based)(4) == 4
    assert await meter.wrap(lambda *, x: double(x))(x=5) == 10
    with pytest.raises(ValueError, match="later"):
        await meter.wrap(Later)(ValueError("later"))
    assert counts(meter) == (3, 1, 0)


async def test_call_starts_when_it_is_awaited():
    """As with any async function, making the coroutine runs nothing."""
    meter = Meter()
    coroutine = meter.wrap(double)(3)
    assert meter.statistics().started == 0
    coroutine.close()
    assert meter.statistics().started == 0


async def test_coroutine_that_is_closed_has_failed():
    ends = []
    meter = Meter(on_end=ends.append)
    coroutine = meter.wrap(double)(3)
    coroutine.send(None)
    assert meter.statistics().running == 1
    coroutine.close()
    assert counts(meter) == (0, 1, 0)
    assert isinstance(ends[0].error, GeneratorExit)


def test_coroutine_may_be_closed_after_its_run():
    """As the garbage collector does with those of a run that crashed."""
    ends = []
    meter = Meter(on_end=ends.append)
    left = []

    async def main():
        left.append(meter.wrap(double)(3))
        left[0].send(None)
        await trio.sleep(2)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert meter.statistics().running == 1
    left.pop().close()
    assert counts(meter) == (0, 1, 0)
    assert ends[0].ended == ends[0].started + 2


async def test_adds_no_checkpoint_and_takes_none_away():
    meter = Meter()
    with assert_no_checkpoints():
        await meter.wrap(fail_not)()
    with assert_checkpoints():
        await meter.wrap(trio.sleep)(0)


# What runs


async def test_running_calls_are_told_with_arguments_start_and_task_longest_first(autojump_clock):
    meter = Meter()
    tasks = {}

    async def fn(seconds, *rest):
        tasks[seconds] = trio.lowlevel.current_task()
        await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        for seconds in (3, 1, 4):
            nursery.start_soon(meter.wrap(fn), seconds, "rest")
            await trio.sleep(0.25)
        running = meter.running()
        start = running[0].started
        assert running == [
            Running((3, "rest"), start, tasks[3]),
            Running((1, "rest"), start + 0.25, tasks[1]),
            Running((4, "rest"), start + 0.5, tasks[4]),
        ]
        assert all(call.task is tasks[call.args[0]] for call in running)
        await trio.sleep(1)
        assert [call.args[0] for call in meter.running()] == [3, 4]
    assert running[0].args == (3, "rest")  # what was given out stays as it was
    assert meter.running() == []


async def test_keyword_arguments_reach_the_function_and_are_not_among_args():
    seen = []

    async def fn(*args, **kwargs):
        seen.append((args, kwargs, [call.args for call in meter.running()]))

    meter = Meter()
    await meter.wrap(fn)(1, key="value", self="too", fn=3, args=4)
    await meter.wrap(fn)()
    assert seen == [((1,), {"key": "value", "self": "too", "fn": 3, "args": 4}, [(1,)]), ((), {}, [()])]


async def test_frames_of_a_running_call_tell_where_it_is(autojump_clock):
    async def inner():
        await trio.sleep(1)

    async def outer(x):
        await inner()

    meter = Meter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.do, meter.wrap(outer), [3])
        await wait_all_tasks_blocked()
        (call,) = meter.running()
        names = [frame.f_code.co_name for frame, _ in call.task.iter_await_frames()]
        assert names[names.index("outer") :][:3] == ["outer", "inner", "sleep"]


async def test_nested_wraps_in_one_task_are_calls_of_their_own(autojump_clock):
    ends = []
    meter = Meter(on_end=ends.append)

    async def inner(x):
        await trio.sleep(1)
        assert [call.args for call in meter.running()] == [("outer",), ("inner",)]
        assert len({call.task for call in meter.running()}) == 1
        return x

    inner = meter.wrap(inner)

    async def outer(x):
        await trio.sleep(1)
        return await inner("inner")

    assert await meter.wrap(outer)("outer") == "inner"
    assert [(end.args, end.ended - end.started) for end in ends] == [(("inner",), 1), (("outer",), 2)]
    assert meter.statistics() == MeterStatistics(2, 2, 0, 0, running=0, peak_running=2)


async def test_function_that_is_wrapped_twice_counts_twice():
    meter, other = Meter(), Meter()
    assert await other.wrap(meter.wrap(meter.wrap(double)))(3) == 6
    assert meter.statistics() == MeterStatistics(2, 2, 0, 0, running=0, peak_running=2)
    assert other.statistics() == MeterStatistics(1, 1, 0, 0, running=0, peak_running=1)


async def test_one_meter_sees_several_functions(autojump_clock):
    meter = Meter()
    sleep, fail_ = meter.wrap(trio.sleep), meter.wrap(fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep, 2)
        nursery.start_soon(sleep, 2)
        await trio.sleep(1)
        with pytest.raises(ValueError, match="one"):
            await fail_(ValueError("one"))
    assert meter.statistics() == MeterStatistics(3, 2, 1, 0, running=0, peak_running=3)


# In calls of this package


@pytest.mark.parametrize("limit", [1, 3, 20])
@pytest.mark.parametrize("shared", [False, True])
async def test_peak_is_the_limit(limit, shared, autojump_clock):
    meter = Meter()
    bound = trio.CapacityLimiter(limit) if shared else limit
    await fanout.do(meter.wrap(trio.sleep), [1] * 20, limit=bound)
    assert meter.statistics() == MeterStatistics(20, 20, 0, 0, running=0, peak_running=limit)


async def test_workers_run_one_item_at_a_time_in_tasks_named_after_the_function(autojump_clock):
    ends = []
    meter = Meter(on_end=ends.append)

    async def fetch(x):
        await trio.sleep(x % 3 + 1)

    await fanout.map(meter.wrap(fetch), range(20), limit=4)
    tasks = {end.task for end in ends}
    assert len(tasks) == 4
    assert {task.name for task in tasks} == {"map(fetch)"}
    for task in tasks:
        row = sorted((end.started, end.ended) for end in ends if end.task is task)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(row))
    assert sorted(end.args for end in ends) == [(x,) for x in range(20)]


async def test_group_graph_stream_and_fan_out(autojump_clock):
    meter = Meter()
    fn = meter.wrap(double)
    async with fanout.open_group(limit=2) as group:
        handles = [group.start_soon(fn, x) for x in range(3)]
    assert [handle.value for handle in handles] == [0, 2, 4]
    assert await fanout.run_graph({"a": fanout.Step(meter.wrap(fail_not)), "b": fanout.Step(fn, needs=("a",))}) == {
        "a": 3,
        "b": 6,
    }
    async with fanout.stream(fn, [1, 2]) as results:
        assert [value async for _, _, value in results] == [2, 4]
    assert await fanout.fan_out([fn, fn], 4) == [8, 8]
    assert counts(meter) == (9, 0, 0)


@pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
async def test_items_end_as_their_policy_has_it(policy, autojump_clock):
    """Item 0 fails after 1 s, item 1 succeeds after 2, item 2 would after 3."""

    async def fn(x):
        await trio.sleep(x + 1)
        if x == 0:
            raise ValueError(x)

    meter = Meter()
    with nothing_left():
        try:
            await fanout.map(meter.wrap(fn), range(3), policy=policy)
        except (ValueError, fanout.FanOutError):
            pass
    fast, first = (0, 1, 2), (1, 1, 1)
    assert counts(meter) == {"FailFast": fast, "FirstSuccess": first}.get(type(policy).__name__, (2, 1, 0))


async def test_item_timeout_is_a_cancellation_as_seen_from_inside(autojump_clock):
    meter = Meter()
    outcomes = await fanout.map(meter.wrap(trio.sleep), [1, 9], item_timeout=2, policy=fanout.Settle())
    assert isinstance(outcomes[1].error, trio.TooSlowError)
    assert counts(meter) == (1, 0, 1)


async def test_adapters_compose(autojump_clock):
    meter, waits = Meter(), Meter()
    fn = waits.wrap(fanout.throttle(meter.wrap(double), 1))
    assert await fanout.map(fn, [1, 2, 3]) == [2, 4, 6]
    assert await waits.wrap(fanout.in_thread(len))("four") == 4
    assert meter.statistics() == MeterStatistics(3, 3, 0, 0, running=0, peak_running=1)
    assert waits.statistics() == MeterStatistics(4, 4, 0, 0, running=0, peak_running=3)


# on_end


async def test_each_end_is_told_in_its_task_with_times_of_the_clock(autojump_clock):
    ends = []

    def on_end(end):
        assert end.task is trio.lowlevel.current_task()
        assert end.ended == trio.current_time()
        ends.append(end)

    start = trio.current_time()
    task = trio.lowlevel.current_task()
    await Meter(on_end=on_end).wrap(trio.sleep)(3)
    assert ends == [Ended((3,), task, start, start + 3, None)]


async def test_ends_are_told_in_the_order_of_ending(autojump_clock):
    ends = []
    await fanout.map(Meter(on_end=ends.append).wrap(trio.sleep), [3, 1, 2])
    assert [end.args[0] for end in ends] == [1, 2, 3]


async def test_call_is_counted_and_no_more_running_before_its_end_is_told():
    seen = []
    meter = Meter(on_end=lambda end: seen.append((meter.statistics(), meter.running())))
    await meter.wrap(fail_not)()
    with pytest.raises(ValueError, match="bad"):
        await meter.wrap(fail)(ValueError("bad"))
    assert seen == [(MeterStatistics(1, 1, 0, 0, 0, 1), []), (MeterStatistics(2, 1, 1, 0, 0, 1), [])]


async def test_on_end_may_call_the_meter_again():
    async def fn(x):
        return x

    def on_end(end):
        if end.args == (1,):
            coroutine = meter.wrap(fn)(2)
            with pytest.raises(StopIteration):
                coroutine.send(None)

    meter = Meter(on_end=on_end)
    await meter.wrap(fn)(1)
    assert counts(meter) == (2, 0, 0)


@FAILS
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
async def test_what_on_end_raises_the_call_raises_with_its_own_error_as_the_context(fails, error):
    own = ValueError("own")

    def on_end(end):
        raise error

    meter = Meter(on_end=on_end)
    with pytest.raises(type(error)) as caught:
        await meter.wrap(fails)(own)
    assert caught.value is error
    assert caught.value.__context__ is own
    assert counts(meter) == (0, 1, 0)


async def test_what_on_end_raises_after_a_success_has_no_context():
    def on_end(end):
        raise OSError("full")

    meter = Meter(on_end=on_end)
    with pytest.raises(OSError, match="full") as caught:
        await meter.wrap(fail_not)()
    assert caught.value.__context__ is None
    assert counts(meter) == (1, 0, 0)  # the call had succeeded


async def test_on_end_that_raises_at_a_cancellation_replaces_it(autojump_clock):
    """As a `finally` that raises would. The scope is cancelled all the same."""

    def on_end(end):
        raise OSError("full")

    meter = Meter(on_end=on_end)
    with pytest.raises(OSError, match="full") as caught, trio.move_on_after(1) as scope:
        await meter.wrap(trio.sleep)(3)
    assert isinstance(caught.value.__context__, trio.Cancelled)
    assert scope.cancel_called
    assert counts(meter) == (0, 0, 1)


async def test_on_end_that_raises_fails_the_item(autojump_clock):
    def on_end(end):
        if end.args == (1,):
            raise OSError("full")

    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(Meter(on_end=on_end).wrap(double), range(3), policy=fanout.Collect())
    assert caught.value.indices == (1,)
    assert caught.value.results == {0: 0, 2: 4}


@pytest.mark.parametrize("returned", [None, True, 3, Later(3)])
async def test_what_on_end_returns_is_ignored(returned):
    assert await Meter(on_end=lambda _: returned).wrap(fail_not)() == 3


# Wrong use


class AsyncCallable:
    async def __call__(self, end):
        pass


async def generator(end):
    yield end


@pytest.mark.parametrize("on_end", [double, AsyncCallable(), generator, functools.partial(double)])
def test_on_end_that_is_async_is_a_type_error_at_once(on_end):
    with pytest.raises(
        TypeError, match=r"^on_end must be None or a function that is not async, got the async function"
    ):
        Meter(on_end=on_end)


def test_on_end_that_is_an_exception_class_is_a_type_error_at_once():
    with pytest.raises(TypeError, match=r"^on_end must be None or a function .* got the class ValueError$"):
        Meter(on_end=ValueError)


@pytest.mark.parametrize("on_end", [3, "f", []])
def test_on_end_that_cannot_be_called_is_a_type_error_at_once(on_end):
    with pytest.raises(TypeError, match=r"^on_end must be None or a function that is not async, got (3|a str|a list)$"):
        Meter(on_end=on_end)


async def test_on_end_that_is_a_coroutine_object_is_closed():
    with pytest.raises(TypeError, match=r"^on_end must be None or a function that is not async, got a coroutine"):
        Meter(on_end=double(3))


async def test_on_end_that_turns_out_to_be_async_is_a_type_error():
    """And Python does not warn that a coroutine was never awaited."""
    meter = Meter(on_end=lambda end: double(end.args))
    with pytest.raises(TypeError, match=r"^on_end must be a function that is not async, got a coroutine from it"):
        await meter.wrap(fail_not)()
    with pytest.raises(TypeError) as caught:
        await meter.wrap(fail)(ValueError("own"))
    assert isinstance(caught.value.__context__, ValueError)


def test_on_end_is_named():
    with pytest.raises(TypeError, match="positional"):
        Meter(print)


@pytest.mark.parametrize("fn", [None, 3, "f"])
def test_function_that_cannot_be_called_is_a_type_error_at_once(fn):
    with pytest.raises(TypeError, match=r"^fn must be an async function, got"):
        Meter().wrap(fn)


def test_coroutine_in_the_place_of_a_function_is_a_type_error_at_once():
    with pytest.raises(TypeError, match="pass the function itself, without calling it"):
        Meter().wrap(double(3))


def test_call_outside_of_a_run_is_an_error_before_it_starts():
    called = []

    async def fn():
        called.append(True)

    meter = Meter()
    with pytest.raises(RuntimeError, match=r"fn\(\) needs Trio, .* that trio.run\(...\) runs"):
        meter.wrap(fn)().send(None)
    with pytest.raises(RuntimeError, match=r"fn\(\) needs Trio, .* that trio.run\(...\) runs"):
        asyncio.run(meter.wrap(fn)())
    assert called == []
    assert meter.statistics().started == 0


# Names


async def test_name_docstring_and_signature_are_the_functions_own():
    async def fetch(url, *, retries=0):
        """Fetch a page."""

    meter = Meter()
    fn = meter.wrap(fetch)
    assert (fn.__name__, fn.__doc__) == ("fetch", "Fetch a page.")
    assert fn.__qualname__ == fetch.__qualname__
    assert inspect.signature(fn) == inspect.signature(fetch)
    assert inspect.iscoroutinefunction(fn)
    assert meter.wrap(functools.partial(fetch, retries=1)).__name__ == "fetch"
    assert meter.wrap(AsyncCallable()).__name__ == "AsyncCallable"


async def test_method_may_be_decorated():
    meter = Meter()

    class Client:
        @meter.wrap
        async def get(self, url):
            return self, url

    client = Client()
    assert await client.get("a") == (client, "a")
    assert await meter.wrap(client.get)("b") == (client, "b")
    assert counts(meter) == (3, 0, 0)


async def test_repr_tells_the_counts():
    reprs = []

    async def fn():
        reprs.append(repr(meter))

    meter = Meter(on_end=lambda _: None)
    await meter.wrap(fn)()
    with pytest.raises(ValueError, match="x"):
        await meter.wrap(fail)(ValueError("x"))
    assert reprs == ["<trio_fanout.Meter: 1 running, 0 succeeded, 0 failed, 0 cancelled>"]
    assert repr(meter) == "<trio_fanout.Meter: 0 running, 1 succeeded, 1 failed, 0 cancelled>"


# Runs and threads


def test_meter_outlives_a_run_and_counts_on_in_the_next():
    ends = []
    meter = Meter(on_end=ends.append)
    fn = meter.wrap(trio.sleep)
    for _ in range(2):
        trio.run(fanout.do, fn, [1, 2], clock=MockClock(autojump_threshold=0))
    assert meter.statistics() == MeterStatistics(4, 4, 0, 0, running=0, peak_running=2)
    assert [end.ended - end.started for end in ends] == [1, 2, 1, 2]


def test_run_that_is_interrupted_leaves_nothing_running():
    meter = Meter()

    async def fn(x):
        if x == 2:
            raise KeyboardInterrupt
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(fanout.do, meter.wrap(fn), range(3))
    assert counts(meter) == (0, 1, 2)


def test_runs_in_threads_share_a_meter():
    """All calls of all runs are counted, and what runs is seen from outside of them."""
    meter = Meter()
    both = threading.Barrier(3, timeout=30)

    async def fn(x):
        both.wait()
        both.wait()
        await trio.lowlevel.checkpoint()

    threads = [threading.Thread(target=trio.run, args=(meter.wrap(fn), k)) for k in range(2)]
    for thread in threads:
        thread.start()
    both.wait()
    assert meter.statistics() == MeterStatistics(2, 0, 0, 0, running=2, peak_running=2)
    assert sorted(call.args for call in meter.running()) == [(0,), (1,)]
    assert len({call.task for call in meter.running()}) == 2
    both.wait()
    for thread in threads:
        thread.join()
    assert counts(meter) == (2, 0, 0)


def test_no_count_is_lost_between_threads():
    """With switches as often as the interpreter can make them; the numbers seen meanwhile add up."""
    meter = Meter()
    calls = 1_000

    async def main():
        for _ in range(calls):
            await meter.wrap(fail_not)()
            with pytest.raises(ValueError, match="own"):
                await meter.wrap(fail_at_once)(ValueError("own"))
            with trio.CancelScope() as scope:
                scope.cancel()
                await meter.wrap(trio.sleep_forever)()

    threads = [threading.Thread(target=trio.run, args=(main,)) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now = meter.statistics()
            assert 0 <= now.running <= 4
            assert len(meter.running()) <= 4
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert counts(meter) == (4 * calls,) * 3
    assert 1 <= meter.statistics().peak_running <= 4


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="for POSIX signals")
def test_signal_handler_may_ask_what_runs():
    """A plain one, which also gets through to a task that keeps the event loop busy."""
    meter = Meter()
    seen = []

    async def fn(x):
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append((meter.running(), meter.statistics())))
    try:
        trio.run(meter.wrap(fn), 3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    (((call,), statistics),) = seen
    assert call.args == (3,)
    assert statistics.running == 1


def test_ctrl_c_leaves_no_call_running():
    """A real SIGINT, at many moments of the meter's own work."""
    meter = Meter(on_end=lambda _: None)
    fn = meter.wrap(fail_not)
    module = meter.statistics.__code__.co_filename
    hit = []

    def interrupt(at):
        """Run with a SIGINT at one step of the meter; false if it has not so many."""
        steps = 0

        def trace(frame, event, arg):
            nonlocal steps
            if frame.f_code.co_filename == module and frame.f_code.co_name in ("_start", "_end"):
                steps += 1
                if steps == at:
                    hit.append(frame.f_code.co_name)
                    signal.raise_signal(signal.SIGINT)
            return trace

        async def main():
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                await fn()
            finally:
                sys.settrace(before)
            await trio.lowlevel.checkpoint()  # where Trio delivers what was held back

        try:
            trio.run(main)
        except KeyboardInterrupt:
            return True
        return False

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupted = next(at for at in itertools.count(1) if not interrupt(at)) - 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(hit) == interrupted
    assert set(hit) == {"_start", "_end"}
    assert counts(meter) == (interrupted + 1, 0, 0)


# Nothing is kept


class Thing:
    """Something that a weak reference can watch."""


@pytest.fixture
def _no_collector():
    gc.disable()
    yield
    gc.enable()


async def ends(how, thing):
    """End in the way that `how` says, with what leads to `thing`."""
    await trio.lowlevel.checkpoint()
    match how:
        case "failure":
            raise ValueError(thing)
        case "cancelled":
            await trio.sleep_forever()
        case "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends, "failure", thing)
                nursery.start_soon(trio.sleep_forever)
        case "interrupt":
            raise KeyboardInterrupt(thing)
    return thing


HOWS = ["success", "failure", "cancelled", "group", "interrupt"]


def raise_for(end):
    raise OSError(end.args)


ON_ENDS = pytest.mark.parametrize("on_end", [None, lambda _: None, raise_for], ids=["none", "quiet", "raises"])


@ON_ENDS
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.usefixtures("_no_collector")
async def test_nothing_is_kept_of_a_call_that_has_ended(how, on_end, autojump_clock):
    meter = Meter(on_end=on_end)
    fn = meter.wrap(ends)
    watched = []

    async def once():
        thing = Thing()
        watched.append(weakref.ref(thing))
        with trio.move_on_after(1):
            try:
                await fn(how, thing)
            except (Exception, KeyboardInterrupt):  # noqa: BLE001
                pass

    await once()
    await trio.lowlevel.checkpoint()  # until then, Trio has the last Cancelled that it threw into this task
    assert watched[0]() is None


@ON_ENDS
@pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
@pytest.mark.parametrize("how", HOWS)
async def test_no_reference_cycle_is_left(how, policy, on_end, autojump_clock):
    meter = Meter(on_end=on_end)

    async def once():
        with trio.move_on_after(1):
            try:
                await fanout.map(meter.wrap(functools.partial(ends, how)), [Thing(), Thing()], policy=policy)
            except (Exception, KeyboardInterrupt):  # noqa: BLE001
                pass

    await once()
    with no_cycles(), nothing_left():
        await once()
    assert meter.running() == []


async def test_error_that_is_kept_keeps_no_task(autojump_clock):
    """Its traceback leads to the frames of the call, and these must not lead to all that the task runs."""
    meter = Meter(on_end=lambda _: None)
    (failed,) = await fanout.map(meter.wrap(fail), [ValueError("kept")], policy=fanout.Settle())
    frames = []
    traceback = failed.error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    assert [frame.f_code.co_name for frame in frames] == ["call", "fail"]
    held = list(frames[0].f_locals.values())
    held += gc.get_referents(*held)
    assert not any(isinstance(value, trio.lowlevel.Task) for value in held)


async def test_a_failure_that_cannot_be_looked_into_is_one(monkeypatch):
    """As on a full stack, below: what measures coverage needs some of that, too."""

    def full(exc):
        raise RecursionError

    meter = Meter()
    monkeypatch.setattr("trio_fanout._meter.is_cancelled", full)
    with pytest.raises(ValueError, match="no"):
        await meter.wrap(fail)(ValueError("no"))
    assert meter.statistics().failed == 1
    assert meter.running() == []


async def test_an_error_before_the_call_starts_is_raised_as_it_is(autojump_clock, monkeypatch):
    def no_time(clock):
        raise RuntimeError("no time")

    meter = Meter()
    call = meter.wrap(double)(1)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^no time"):
        patch.setattr(type(autojump_clock), "current_time", no_time)
        call.send(None)
    assert meter.statistics().started == 0
    assert meter.running() == []


async def test_a_call_that_fails_on_a_full_stack_is_counted():
    """To tell whether a group is a cancellation takes some of the stack."""
    for off in range(40):
        meter = Meter()
        call = functools.partial(meter.wrap(fail), ExceptionGroup("", [ValueError()]))
        frames = await deepest() - off
        with pytest.raises((ExceptionGroup, RecursionError)):
            await deeper(frames, call)
        now = meter.statistics()
        assert now.running == 0
        assert now.failed == now.started


async def test_wrapped_function_does_not_outlive_its_last_reference():
    with no_cycles():
        meter = Meter()
        fn = meter.wrap(double)
        await fn(3)
        gone = weakref.ref(meter), weakref.ref(fn)
        del fn, meter
        assert [ref() for ref in gone] == [None, None]


async def test_records_unpack_and_have_names():
    ends = []
    await Meter(on_end=ends.append).wrap(double)(3)
    args, task, started, ended, error = ends[0]
    assert attrgetter("args", "task", "started", "ended", "error")(ends[0]) == (args, task, started, ended, error)
